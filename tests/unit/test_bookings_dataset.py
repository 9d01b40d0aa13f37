"""The bundled bookings data: its contract, its variety, and proof that each guard fires."""

import json
import re
from collections import Counter
from datetime import date
from itertools import combinations
from pathlib import Path

import pytest

from variety import commonest_skeleton, distinct_4grams, nearest_pair, words

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "bookings"
KEYS = ["name", "animal", "nights", "from", "needs"]
# Bounds of the variety guards; what the data measures today stands beside each.
DISTINCT_4GRAMS = 0.99  # train 0.997, test 0.999
COMMONEST_SKELETON = 0.03  # train 0.005, test 0.018: no two messages share one
NEAR_DUPLICATE = 0.10  # 4-gram Jaccard; the nearest train/test pair measures 0.015
COMMONEST_ANIMAL = 0.40  # train 0.20 (dogs), test 0.16

DAYS = words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = words(
    "january february march april may june july august september october november december"
)
COUNTS = words(
    """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty
    """
)
MONTH, NTH = f"({'|'.join(MONTHS)})", "(?:st|nd|rd|th)"
WRITTEN_DATE = rf"\b(\d+){NTH}?(?: of)? {MONTH}\b|\b{MONTH} (\d+){NTH}?\b|\b(\d+){NTH}\b"
COUNT = rf"(\d+|a|that|single|{'|'.join(COUNTS)})"

Row = dict[str, str]


def read(split: str) -> list[Row]:
    return [
        json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]


TRAIN, TEST, SHOWCASE = read("train"), read("test"), read("showcase")
PAIRS = TRAIN + TEST


def messages(rows: list[Row]) -> list[str]:
    return [row["message"] for row in rows]


def values(rows: list[Row], key: str) -> list:
    return [json.loads(row["form"])[key] for row in rows]


def number(word: str) -> int:
    if word.isdigit():
        return int(word)
    return COUNTS.index(word) + 1 if word in COUNTS else 1


def counted_nights(message: str) -> set[int]:
    """Nights that the message counts out: "two nights", "one more nite", "Nights: five"."""
    found = re.findall(rf"\b{COUNT}(?: more)? (?:nights?|nites?|nts)\b(?! light)", message.lower())
    found += re.findall(rf"\bnights: {COUNT}\b", message.lower())
    return {number(word) for word in found}


def possible_nights(message: str) -> set[int]:
    """Every length of stay that the message can mean: counts, weeks, two weekdays, two dates."""
    text = message.lower()
    weeks = re.findall(rf"\b{COUNT} (?:usual )?we?e?ks?\b", text.replace("the usual ", ""))
    found = counted_nights(message) | {7 * number(word) for word in weeks}
    if "fortnight" in text:
        found.add(14)
    named = [DAYS.index(day) for day in words(text) if day in DAYS]
    found |= {(end - start) % 7 or 7 for start, end in combinations(named, 2)}
    dates = []
    for day, month, month_first, day_last, bare in re.findall(WRITTEN_DATE, text):
        name = month or month_first
        dates.append(
            date(2023, MONTHS.index(name) + 1 if name else 1, int(day or day_last or bare))
        )
    return found | {(end - start).days for start, end in combinations(dates, 2)}


def faults(row: Row) -> list[str]:
    """What is wrong with a row's form, by the rules of the data card."""
    message, found = row["message"], []
    try:
        form = json.loads(row["form"])
    except json.JSONDecodeError:
        return ["not JSON"]
    if list(form) != KEYS:
        return ["keys"]
    if row["form"] != json.dumps(form, separators=(", ", ": "), ensure_ascii=False):
        found.append("not compact")
    name, animal, nights, start, needs = form.values()
    if not (name is None or (isinstance(name, str) and name in message and name)):
        found.append("name")
    if not (isinstance(animal, str) and animal == animal.lower() and animal in message.lower()):
        found.append("animal")
    if nights is None:
        if counted_nights(message):
            found.append("nights left out")
    elif type(nights) is not int or nights not in possible_nights(message):
        found.append("nights")
    if start is not None:
        if not isinstance(start, str) or start not in message:
            found.append("from")
        elif start.lower() in DAYS:
            if re.search(rf"{start} (?:the )?\d", message):
                found.append("from: the date goes before the weekday")
        elif not re.fullmatch(WRITTEN_DATE, start.lower()):
            found.append("from")
    if not isinstance(needs, list) or len(needs) > 3 or len(set(needs)) < len(needs):
        return [*found, "needs"]
    places = [message.find(need) if isinstance(need, str) else -1 for need in needs]
    if -1 in places or places != sorted(places):
        found.append("needs")
    elif not all(re.match(r"(?!(?:a|an|the|his|her|its) )\S+(?: \S+){0,3}$", n) for n in needs):
        found.append("needs: up to four words, without an article")
    return found


def test_sizes_and_fields() -> None:
    assert len(TRAIN) >= 150
    assert len(TEST) >= 48
    assert len(SHOWCASE) == 6
    assert all(list(row) == ["message", "form", "topic"] for row in PAIRS)
    assert all(list(row) == ["message"] for row in SHOWCASE)
    for row in PAIRS + SHOWCASE:
        assert all(value == value.strip() != "" for value in row.values()), row
        assert all("\n" not in value for value in row.values()), row


def test_every_form_follows_the_rules() -> None:
    assert [(found, row) for row in PAIRS if (found := faults(row))] == []


def test_lengths() -> None:
    assert [m for m in messages(PAIRS + SHOWCASE) if not 8 <= len(m.split()) <= 60] == []


def test_no_message_comes_twice() -> None:
    counts = Counter(" ".join(words(message)) for message in messages(PAIRS + SHOWCASE))
    assert [message for message, count in counts.items() if count > 1] == []


def test_test_topics_and_names_are_unseen() -> None:
    train, test = ({row["topic"] for row in rows} for rows in (TRAIN, TEST))
    assert train & test == set()
    assert len(train) >= 8
    assert len(test) >= 3
    assert set(values(TRAIN, "name")) & set(values(TEST, "name")) == {None}


def test_test_and_showcase_have_no_near_duplicate_in_training() -> None:
    score, left, right = nearest_pair(messages(TRAIN), messages(TEST + SHOWCASE))
    assert score < NEAR_DUPLICATE, (left, right)


def commonest_animal(rows: list[Row]) -> tuple[str, float]:
    [(animal, count)] = Counter(values(rows, "animal")).most_common(1)
    return animal, count / len(rows)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_mix_of_forms(split: str) -> None:
    rows = read(split)
    lacking = sum(any(values([row], key) == [None] for key in KEYS) for row in rows) / len(rows)
    assert 0.28 <= lacking <= 0.42
    for key in ("name", "nights", "from"):
        assert values(rows, key).count(None) >= len(rows) / 10
    assert {len(needs) for needs in values(rows, "needs")} == {0, 1, 2, 3}
    assert len(set(values(rows, "nights"))) >= 10
    assert len(set(values(rows, "animal"))) >= 10
    assert commonest_animal(rows)[1] < COMMONEST_ANIMAL


@pytest.mark.parametrize("split", ["train", "test"])
def test_variety(split: str) -> None:
    texts = messages(read(split))
    assert distinct_4grams(texts) > DISTINCT_4GRAMS
    pattern, share = commonest_skeleton(texts)
    assert share < COMMONEST_SKELETON, pattern


# What a script with a template would have made: the guards must refuse it.
TEMPLATED = [
    {
        "message": f"Please take my dog {name} for {count} nights from {day}. He has {need}.",
        "form": json.dumps({"animal": "dog"}),
        "topic": "planted",
    }
    for name in ("Rex", "Fido", "Spot")
    for count in ("two", "three", "four")
    for day in ("Monday", "Friday", "Sunday")
    for need in ("tablets", "drops")
]


def test_the_4gram_guard_fires() -> None:
    assert distinct_4grams(messages(TEMPLATED)) < DISTINCT_4GRAMS
    # Also when only one training row in ten is planted.
    assert distinct_4grams(messages(TRAIN + TEMPLATED[: len(TRAIN) // 10])) < DISTINCT_4GRAMS


def test_the_skeleton_guard_fires() -> None:
    pattern, share = commonest_skeleton(messages(TRAIN + TEMPLATED[:9]))
    assert pattern == "_ my _ for _ from _ . he has _ ."
    assert share > COMMONEST_SKELETON


def test_the_near_duplicate_guard_fires() -> None:
    planted = {"message": TRAIN[0]["message"].replace("parrot", "raven")}
    score, left, _ = nearest_pair(messages(TRAIN), messages([*TEST, planted]))
    assert left == TRAIN[0]["message"]
    assert score > NEAR_DUPLICATE


def test_the_animal_guard_fires() -> None:
    animal, share = commonest_animal(TEST + TEMPLATED)
    assert animal == "dog"
    assert share > COMMONEST_ANIMAL


PLANTED = "Biscuit is a dog. Friday 4 March, three nights. He has his tablets and a quiet corner."
GOOD = {
    "name": "Biscuit",
    "animal": "dog",
    "nights": 3,
    "from": "4 March",
    "needs": ["tablets", "quiet corner"],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"name": None, "from": None, "needs": []}, []),
        ({"name": "Cracker"}, ["name"]),
        ({"name": 7}, ["name"]),
        ({"animal": "cat"}, ["animal"]),
        ({"animal": "Dog"}, ["animal"]),
        ({"animal": None}, ["animal"]),
        ({"nights": 2}, ["nights"]),
        ({"nights": "3"}, ["nights"]),
        ({"nights": None}, ["nights left out"]),
        ({"from": "5 March"}, ["from"]),
        ({"from": "Biscuit"}, ["from"]),
        ({"from": "Friday"}, ["from: the date goes before the weekday"]),
        ({"needs": ["pills"]}, ["needs"]),
        ({"needs": "tablets"}, ["needs"]),
        ({"needs": ["quiet corner", "tablets"]}, ["needs"]),
        ({"needs": ["tablets", "tablets"]}, ["needs"]),
        ({"needs": ["Biscuit", "dog", "Friday", "tablets"]}, ["needs"]),
        ({"needs": ["his tablets"]}, ["needs: up to four words, without an article"]),
        ({"age": 4}, ["keys"]),
    ],
)
def test_the_form_guard_fires(change: dict, expected: list[str]) -> None:
    form = json.dumps(GOOD | change)
    assert faults({"message": PLANTED, "form": form, "topic": "planted"}) == expected


def test_the_layout_guard_fires() -> None:
    for form, expected in (
        (json.dumps(GOOD)[:-1], "not JSON"),
        (json.dumps(GOOD, separators=(",", ":")), "not compact"),
        (json.dumps(dict(reversed(GOOD.items()))), "keys"),
    ):
        assert faults({"message": PLANTED, "form": form, "topic": "planted"}) == [expected]


@pytest.mark.parametrize(
    ("message", "nights"),
    [
        ("Monday to Thursday", {3}),
        ("a fortnight", {14}),
        ("the usual two weeks", {14}),
        ("from Thursday to the Thursday after", {7}),
        ("29 June until 4 July", {5}),
        ("from the 26th, back on the 30th", {4}),
        ("leave a night light on", set()),
    ],
)
def test_possible_nights(message: str, nights: set[int]) -> None:
    assert possible_nights(message) == nights
