"""The bundled notebook data: its contract, its voice, its variety, and proof that guards fire."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from variety import commonest_skeleton, distinct_4grams, nearest_pair, words

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "notebook"
KEYS = ["instruction", "input", "output", "topic"]
NOT_ASCII = {"£"}  # the only character outside ASCII, in sums of money
# Bounds of the variety guards; what the data measures today stands beside each.
OUTPUT_4GRAMS = 0.99  # train 1.0, test 1.0: no four words in a row come twice
PROMPT_4GRAMS = 0.993  # train 0.9986, test 1.0
COMMONEST_SKELETON = 0.03  # train 0.009 (two rows of 216); in test one row alone is 0.02
COMMONEST_OPENING = 0.06  # train 0.042: nine of 216 instructions begin "What is"
NEAR_DUPLICATE = 0.10  # 4-gram Jaccard; the nearest pairs measure 0.016 and 0.059

PREAMBLE = re.compile(
    r"(?:absolutely|as an ai|certainly|great question|here(?:'s| is| are)|i'd be happy|i would be"
    r" happy|of course|okay|sure|to answer|you asked)\b",
    re.IGNORECASE,
)

Row = dict[str, str]


def read(split: str) -> list[Row]:
    return [
        json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]


TRAIN, TEST, SHOWCASE = read("train"), read("test"), read("showcase")
PAIRS = TRAIN + TEST


def prompt(row: Row) -> str:
    return f"{row['instruction']}\n{row.get('input', '')}"


def prompts(rows: list[Row]) -> list[str]:
    return [prompt(row) for row in rows]


def outputs(rows: list[Row]) -> list[str]:
    return [row["output"] for row in rows]


def faults(row: Row) -> list[str]:
    """What the row does that the data card rules out."""
    output = row["output"]
    listed = "\n" in output
    sentences = len(re.findall(r"[.!?]+[\"']?(?=\s|$)", output))
    checks = {
        "preamble": PREAMBLE.match(output),
        "length": not 8 <= len(output.split()) <= 55,
        "sentences": sentences > 3 and not listed,
        "unasked list": listed and "list" not in words(row["instruction"]),
        "markup": re.search(r"\*\*|^#|`", output, re.MULTILINE),
        "characters": any(
            not (char.isascii() or char in NOT_ASCII) for text in row.values() for char in text
        ),
        "spaces": any(text != text.strip() for text in row.values()),
        "empty": not (row["instruction"] and output and row["topic"]),
    }
    return [name for name, found in checks.items() if found]


def repeated_prompts(rows: list[Row]) -> list[str]:
    counts = Counter(" ".join(words(text)) for text in prompts(rows))
    return [text for text, count in counts.items() if count > 1]


def shared_topics(left: list[Row], right: list[Row]) -> set[str]:
    return {row["topic"] for row in left} & {row["topic"] for row in right}


def commonest_opening(rows: list[Row]) -> tuple[str, float]:
    """The first two words that most instructions share, and the share of rows that have them."""
    openings = Counter(" ".join(words(row["instruction"])[:2]) for row in rows)
    [(opening, count)] = openings.most_common(1)
    return opening, count / len(rows)


def nearest(left: list[Row], right: list[Row]) -> tuple[float, str, str]:
    """The nearest pair of two splits, over the outputs or over instruction and input."""
    answered = [row for row in right if "output" in row]
    return max(
        nearest_pair(prompts(left), prompts(right)),
        nearest_pair(outputs(left), outputs(answered)),
    )


def test_sizes_and_fields() -> None:
    assert len(TRAIN) >= 180
    assert len(TEST) >= 48
    assert len(SHOWCASE) == 6
    assert all(list(row) == KEYS for row in PAIRS)
    assert all(list(row) == ["instruction"] for row in SHOWCASE)
    assert all(row["instruction"] and row["instruction"].isascii() for row in SHOWCASE)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_row_keeps_the_voice(split: str) -> None:
    assert [(row, faults(row)) for row in read(split) if faults(row)] == []


def test_about_half_the_rows_have_an_input() -> None:
    for rows in (TRAIN, TEST):
        assert 0.4 <= sum(row["input"] != "" for row in rows) / len(rows) <= 0.6


def test_topics_are_many_and_even_and_those_of_the_test_unseen() -> None:
    for rows, least in ((TRAIN, 12), (TEST, 4)):
        counts = Counter(row["topic"] for row in rows)
        assert len(counts) >= least
        assert min(counts.values()) >= 8
    assert shared_topics(TRAIN, TEST) == set()


def test_no_prompt_comes_twice() -> None:
    assert repeated_prompts(PAIRS + SHOWCASE) == []


def test_test_and_showcase_have_no_near_duplicate_in_training() -> None:
    score, left, right = nearest(TRAIN, TEST + SHOWCASE)
    assert score < NEAR_DUPLICATE, (left, right)


@pytest.mark.parametrize("split", ["train", "test"])
def test_variety(split: str) -> None:
    rows = read(split)
    assert distinct_4grams(outputs(rows)) > OUTPUT_4GRAMS
    assert distinct_4grams(prompts(rows)) > PROMPT_4GRAMS
    pattern, share = commonest_skeleton([row["instruction"] for row in rows])
    assert share < COMMONEST_SKELETON, pattern
    opening, share = commonest_opening(rows)
    assert share < COMMONEST_OPENING, opening


# What a script with a grammar would have made: the guards must refuse it.
TEMPLATED = [
    {
        "instruction": f"How do I clean a {state} {thing}?",
        "input": "",
        "output": f"Wipe the {thing} with a damp cloth and dry it at once. Test a {state} patch.",
        "topic": "planted",
    }
    for thing in ("saddle", "lamp", "boot", "basket", "mirror")
    for state in ("dusty", "greasy", "muddy", "sticky", "rusty")
]
GOOD = {
    "instruction": "Why does my tap drip?",
    "input": "",
    "output": "The washer inside has gone hard. Turn the water off before you open the tap.",
    "topic": "planted",
}


def test_a_good_row_has_no_faults() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("preamble", {"output": f"Sure! {GOOD['output']}"}),
        ("preamble", {"output": "As an AI, I cannot turn a tap, but the washer is probably hard."}),
        ("preamble", {"output": f"certainly, {GOOD['output']}"}),
        ("length", {"output": "Change the washer."}),
        ("length", {"output": "Turn it off and then on again " * 8 + "at last."}),
        ("sentences", {"output": "It is old. It is hard. It is cracked. Buy a new washer."}),
        ("unasked list", {"output": "1. Turn the water off.\n2. Open the tap and look."}),
        ("markup", {"output": "The **washer** inside has gone hard, so change it."}),
        ("characters", {"output": "The washer \N{EN DASH} a rubber ring \N{EN DASH} is hard."}),
        ("spaces", {"input": "kitchen tap "}),
        ("empty", {"topic": ""}),
    ],
)
def test_the_voice_guard_fires(name: str, change: Row) -> None:
    assert name in faults(GOOD | change)


def test_a_list_that_was_asked_for_is_no_fault() -> None:
    asked = {
        "instruction": "List two steps to stop a drip.",
        "output": "1. Turn the water off.\n2. Change the washer.",
    }
    assert faults(GOOD | asked) == []


def test_the_repetition_guard_fires() -> None:
    shouted = TRAIN[0] | {"instruction": TRAIN[0]["instruction"].upper()}
    assert len(repeated_prompts([*TRAIN, shouted])) == 1


def test_the_topic_guard_fires() -> None:
    assert shared_topics(TRAIN, [*TEST, TRAIN[0]]) == {TRAIN[0]["topic"]}


def test_the_4gram_guards_fire() -> None:
    # Also when only one training row in twenty is planted.
    for planted in (TEMPLATED, TRAIN + TEMPLATED[: len(TRAIN) // 20]):
        assert distinct_4grams(outputs(planted)) < OUTPUT_4GRAMS
        assert distinct_4grams(prompts(planted)) < PROMPT_4GRAMS


def test_the_skeleton_guard_fires() -> None:
    planted = TRAIN + TEMPLATED[:10]
    pattern, share = commonest_skeleton([row["instruction"] for row in planted])
    assert pattern == "how do i _ a _ ?"
    assert share > COMMONEST_SKELETON


def test_the_opening_guard_fires() -> None:
    opening, share = commonest_opening(TRAIN + TEMPLATED[:10])
    assert opening == "how do"
    assert share > COMMONEST_OPENING


@pytest.mark.parametrize("field", ["instruction", "output"])
def test_the_near_duplicate_guard_fires(field: str) -> None:
    # One field is taken from a training row with one word changed, the other is new.
    planted = GOOD | {field: TRAIN[0][field].replace("egg", "duck egg")}
    assert planted[field] != GOOD[field]
    score, left, _ = nearest(TRAIN, [*TEST, planted])
    assert left in (prompt(TRAIN[0]), TRAIN[0]["output"])
    assert score > NEAR_DUPLICATE
