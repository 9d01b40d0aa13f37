"""The bundled handbook data: its contract, its variety, and proof that each guard fires."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from variety import commonest_skeleton, distinct_4grams, nearest_pair, words

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "handbook"
UNANSWERABLE = ["not in the handbook"]
# Bounds of the variety guards; what the data measures today stands beside each.
DISTINCT_4GRAMS = 0.98  # 0.995 over all questions
COMMONEST_SKELETON = 0.03  # 0.012: "where is the _ ?" is three questions of 244
NEAR_PARAPHRASE = 0.10  # 4-gram Jaccard; no test question measures above 0.0 with its own fact
NEAR_STRANGER = 0.15  # 0.111, between questions about different things

Row = dict[str, Any]


def read(split: str) -> list[Row]:
    lines = (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


HANDBOOK = (FOLDER / "handbook.md").read_text("utf-8")
TRAIN, TEST = read("train"), read("test")
ALL = TRAIN + TEST


def group(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row["group"] == name]


def facts(rows: Iterable[Row]) -> Counter[str]:
    """How many questions each fact has."""
    return Counter(row["fact"] for row in rows if row["fact"] != "none")


def questions(rows: Iterable[Row]) -> list[str]:
    return [row["question"] for row in rows]


# The guards. Each returns what is wrong, and so an empty list for good data.


def malformed(rows: list[Row]) -> list[Row]:
    """Rows with other fields, an untidy text, too many keywords or a badly named fact."""

    def good(row: Row) -> bool:
        if list(row) != ["question", "answer_keywords", "fact", "topic", "group"]:
            return False
        keywords = row["answer_keywords"]
        return (
            isinstance(keywords, list)
            and 1 <= len(keywords) <= 3
            and all(text == text.strip() != "" for text in [row["question"], *keywords])
            and all(len(text.split()) <= 4 for text in keywords)
            and 4 <= len(row["question"].split()) <= 25
            and row["question"][-1] in "?."
            and bool(re.fullmatch(r"f\d\d|none", row["fact"]))
            and (row["fact"] == "none") == (keywords == UNANSWERABLE)
        )

    return [row for row in rows if not good(row)]


def not_asked_thrice(rows: list[Row]) -> list[str]:
    return [fact for fact, count in facts(rows).items() if count != 3]


def without_evidence(rows: list[Row], handbook: str) -> list[str]:
    """Keywords that do not stand in the handbook as they are written."""
    return [
        keyword
        for row in rows
        if row["fact"] != "none"
        for keyword in row["answer_keywords"]
        if not re.search(rf"(?<!\w){re.escape(keyword)}", handbook)
    ]


def giveaways(rows: list[Row]) -> list[str]:
    """Questions that hold a keyword of their own answer."""
    return [
        row["question"]
        for row in rows
        if any(keyword.lower() in row["question"].lower() for keyword in row["answer_keywords"])
    ]


def two_answers(rows: list[Row]) -> set[str]:
    """Facts whose questions do not agree on the answer or on the topic."""
    seen = {(row["fact"], *row["answer_keywords"], row["topic"]) for row in rows}
    count = Counter(fact for fact, *_ in seen if fact != "none")
    return {fact for fact in count if count[fact] > 1}


def shared_answers(rows: list[Row]) -> list[tuple[str, ...]]:
    """Answers that more than three facts have in common."""
    seen = {(row["fact"], *row["answer_keywords"]) for row in rows if row["fact"] != "none"}
    count = Counter(tuple(answer) for _, *answer in seen)
    return [answer for answer in count if count[answer] > 3]


def confusable(rows: list[Row]) -> set[tuple[str, str]]:
    """Keywords of two facts, one of which is found inside the other ("5 days", "25 days")."""
    found = {
        (row["fact"], keyword.lower())
        for row in rows
        if row["fact"] != "none"
        for keyword in row["answer_keywords"]
    }
    return {
        (short, long) for (a, short), (b, long) in permutations(found, 2) if a != b if short in long
    }


def asked_twice(rows: list[Row]) -> list[str]:
    count = Counter(" ".join(words(question)) for question in questions(rows))
    return [question for question in count if count[question] > 1]


def untaught(train: list[Row], test: list[Row]) -> list[str]:
    """Facts of paraphrase rows that training does not ask about exactly twice."""
    taught = facts(train)
    return [row["fact"] for row in group(test, "paraphrase") if taught[row["fact"]] != 2]


def leaked(train: list[Row], test: list[Row]) -> set[str]:
    """Held-out facts that training asks about, or whose answer it tells."""
    seen = {row["fact"] for row in train}
    told = "\n".join(text for row in train for text in [row["question"], *row["answer_keywords"]])
    return {
        row["fact"]
        for row in group(test, "new_fact")
        if row["fact"] in seen
        or any(re.search(rf"\b{re.escape(k)}\b", told, re.I) for k in row["answer_keywords"])
    }


def nearest_paraphrase(train: list[Row], test: list[Row]) -> tuple[float, str, str]:
    """The train and test questions about one fact that are worded most alike."""
    return max(
        nearest_pair(questions(r for r in train if r["fact"] == row["fact"]), [row["question"]])
        for row in group(test, "paraphrase")
    )


def nearest_stranger(train: list[Row], test: list[Row]) -> tuple[float, str, str]:
    """The train and test questions about different things that are worded most alike."""
    return max(
        nearest_pair(
            questions(r for r in train if r["fact"] == "none" or r["fact"] != row["fact"]),
            [row["question"]],
        )
        for row in test
    )


def asks_with_wh(rows: list[Row]) -> float:
    """The share of questions with a word such as "how" or "where", rather than yes/no ones."""
    wh = re.compile(r"\b(?:how|wh(?:at|en|ere|ich|o|om|ose|y))\b", re.I)
    return sum(bool(wh.search(question)) for question in questions(rows)) / len(rows)


def test_fields() -> None:
    assert malformed(ALL) == []


def test_sizes_and_groups() -> None:
    assert {row["group"] for row in TRAIN} == {"train"}
    assert {row["group"] for row in TEST} == {"paraphrase", "new_fact", "unanswerable"}
    learned, held_out = facts(group(TEST, "paraphrase")), facts(group(TEST, "new_fact"))
    assert len(learned) >= 48
    assert set(learned.values()) == {1}
    assert len(held_out) == 10
    assert set(held_out.values()) == {3}
    assert sorted(learned | held_out) == [f"f{i:02}" for i in range(1, len(facts(ALL)) + 1)]
    assert sum(row["fact"] == "none" for row in TRAIN) == 24
    assert len(group(TEST, "unanswerable")) == 10
    assert {row["fact"] for row in group(TEST, "unanswerable")} == {"none"}


def test_every_fact_has_three_questions_and_one_answer() -> None:
    assert not_asked_thrice(ALL) == []
    assert two_answers(ALL) == set()


def test_the_handbook() -> None:
    assert 1200 <= len(HANDBOOK.split()) <= 1800
    assert HANDBOOK.count("\n## ") >= 10
    assert without_evidence(ALL, HANDBOOK) == []


def test_answers_are_diverse_and_not_in_the_question() -> None:
    assert shared_answers(ALL) == []
    assert giveaways(ALL) == []
    assert confusable(ALL) == set()


def test_no_question_comes_twice() -> None:
    assert asked_twice(ALL) == []


def test_paraphrases_are_of_learned_facts_and_new_facts_are_new() -> None:
    assert untaught(TRAIN, TEST) == []
    assert leaked(TRAIN, TEST) == set()


def test_no_test_question_is_a_near_duplicate_of_a_training_question() -> None:
    score, *pair = nearest_paraphrase(TRAIN, TEST)
    assert score < NEAR_PARAPHRASE, pair
    score, *pair = nearest_stranger(TRAIN, TEST)
    assert score < NEAR_STRANGER, pair


def test_variety() -> None:
    assert distinct_4grams(questions(ALL)) > DISTINCT_4GRAMS
    pattern, share = commonest_skeleton(questions(ALL))
    assert share < COMMONEST_SKELETON, pattern


def test_no_opening_gives_an_unanswerable_question_away() -> None:
    # A model must not learn that "Is there ...?" is never in the handbook and "How ...?" always.
    for rows in (TRAIN, TEST):
        none = [row for row in rows if row["fact"] == "none"]
        assert asks_with_wh(none) > 0.9
    assert asks_with_wh([row for row in TRAIN if row["fact"] != "none"]) < 1


def row(question: str, *keywords: str, fact: str = "f99", group: str = "train") -> Row:
    return {
        "question": question,
        "answer_keywords": list(keywords),
        "fact": fact,
        "topic": "planted",
        "group": group,
    }


GOOD = row("Where do we keep the spare tails?", "hat box")


@pytest.mark.parametrize(
    "bad",
    [
        {"fact": "f99", **{k: v for k, v in GOOD.items() if k != "fact"}},  # another key order
        {k: v for k, v in GOOD.items() if k != "topic"},
        {**GOOD, "answer_keywords": "hat box"},
        {**GOOD, "answer_keywords": []},
        {**GOOD, "answer_keywords": ["in a hat box, behind the stove"]},
        {**GOOD, "question": " Where do we keep the spare tails?"},
        {**GOOD, "question": "Where do we keep the spare tails"},
        {**GOOD, "fact": "tails"},
        {**GOOD, "fact": "none"},
        {**GOOD, "answer_keywords": UNANSWERABLE},
    ],
)
def test_the_field_guard_fires(bad: Row) -> None:
    assert malformed([GOOD, bad]) == [bad]


def test_the_three_questions_guard_fires() -> None:
    assert not_asked_thrice([*ALL, GOOD]) == ["f99"]
    assert not_asked_thrice(ALL[1:]) == [ALL[0]["fact"]]


def test_the_evidence_guard_fires() -> None:
    assert without_evidence([*ALL, GOOD], HANDBOOK) == ["hat box"]
    cut_off = row("How much holiday is there?", "7 days")  # it says 27 days
    assert without_evidence([cut_off], HANDBOOK) == ["7 days"]


def test_the_answer_guards_fire() -> None:
    told = row("Is it true that the tails are in a Hat Box?", "hat box")
    assert giveaways([*ALL, told]) == [told["question"]]
    assert two_answers([*ALL, {**ALL[0], "answer_keywords": ["1913"]}]) == {ALL[0]["fact"]}
    assert two_answers([*ALL, {**ALL[0], "topic": "planted"}]) == {ALL[0]["fact"]}
    four = [row(f"Who is number {n}?", "Percival", fact=f"f9{n}") for n in range(4)]
    assert shared_answers(ALL + four[:3]) == []
    assert shared_answers(ALL + four) == [("Percival",)]
    assert confusable([*ALL, row("How long is the voyage?", "15 days")]) == {("5 days", "15 days")}


def test_the_repetition_guard_fires() -> None:
    again = row(TRAIN[0]["question"].upper(), "1931")
    assert asked_twice([*ALL, again]) == [" ".join(words(TRAIN[0]["question"]))]


def test_the_learned_facts_guard_fires() -> None:
    learned = TRAIN[0]["fact"]
    assert untaught(TRAIN[1:], TEST) == [learned]
    assert untaught(TRAIN, [*TEST, row("Where are the tails?", "hat box", group="paraphrase")])


def test_the_held_out_facts_guard_fires() -> None:
    new = group(TEST, "new_fact")[0]
    assert leaked([*TRAIN, {**new, "group": "train"}], TEST) == {new["fact"]}
    told = row(f"Who told you about the {new['answer_keywords'][0]}?", "hat box")
    assert leaked([*TRAIN, told], TEST) == {new["fact"]}


def test_the_near_duplicate_guards_fire() -> None:
    original = TRAIN[0]
    first, *rest = words(original["question"])
    copy = {**original, "question": " ".join([first, "ever", *rest]), "group": "paraphrase"}
    score, left, _ = nearest_paraphrase(TRAIN, [*TEST, copy])
    assert left == original["question"]
    assert score > NEAR_PARAPHRASE
    stranger = {**copy, "fact": "none", "group": "unanswerable"}
    score, left, _ = nearest_stranger(TRAIN, [*TEST, stranger])
    assert left == original["question"]
    assert score > NEAR_STRANGER


# What a script with a grammar would have made: the guards must refuse it.
TEMPLATED = [
    f"{opening} the {thing} in the {place}?"
    for opening in ("Where do I find", "How big is", "Who looks after")
    for thing in ("ladder", "stove", "broom", "piano")
    for place in ("hall", "attic", "yard")
]


def test_the_variety_guards_fire() -> None:
    assert distinct_4grams(TEMPLATED) < DISTINCT_4GRAMS
    assert distinct_4grams(questions(ALL) + TEMPLATED) < DISTINCT_4GRAMS
    _, share = commonest_skeleton(questions(ALL) + TEMPLATED)
    assert share > COMMONEST_SKELETON


def test_the_wh_guard_fires() -> None:
    none = [row for row in TRAIN if row["fact"] == "none"]
    yes_no = [row(f"Is there a {thing} here?", *UNANSWERABLE) for thing in ("pool", "bar", "gym")]
    assert asks_with_wh(none + yes_no) < 0.9
