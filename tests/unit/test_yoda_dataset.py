"""The bundled yoda data: its contract, its variety, and proof that each variety guard fires."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from variety import commonest_skeleton, distinct_4grams, nearest_pair, words

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "yoda"
INTERJECTION = r"(?:Yes, hmm|Hmm|Mmm|Herh herh herh|Hrrm)"
# Bounds of the variety guards; what the data measures today stands beside each.
DISTINCT_4GRAMS = 0.98  # train 0.9995, test 1.0: almost no four words in a row come twice
COMMONEST_SKELETON = 0.02  # train 0.013: "don't _ the _ ." is seven rows of 525
NEAR_DUPLICATE = 0.10  # 4-gram Jaccard; the nearest train/test pair measures 0.0

Row = dict[str, str]


def read(split: str) -> list[Row]:
    return [
        json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]


TRAIN, TEST, SHOWCASE = read("train"), read("test"), read("showcase")
PAIRS = TRAIN + TEST


JOINERS = words(
    """
    after although and because before but for if or since so that though unless until when whenever
    where wherever while who yet
    """
)
# What a contraction becomes. The whole words are irregular, or commands: "Don't" is "must not".
EXPANSIONS = {"won't": "will not", "can't": "cannot", "don't": "not"}
ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will"}


def plain(rows: list[Row]) -> list[str]:
    return [row["plain"] for row in rows]


def bare(yoda: str) -> str:
    """The turned sentence without its interjection."""
    return re.sub(rf"^{INTERJECTION}\. | {INTERJECTION}[.?]$", "", yoda)


def missing_words(row: Row) -> list[str]:
    """Plain words of four letters and more that do not stand on the yoda side."""
    yoda = words(row["yoda"])
    missing = []
    for word in words(row["plain"]):
        expanded = EXPANSIONS.get(word, word)
        for ending, whole in ENDINGS.items():
            expanded = re.sub(f"{ending}$", whole, expanded)
        if len(word) >= 4 and not all(piece in yoda for piece in expanded.split()):
            missing.append(word)
    return missing


def test_sizes_and_fields() -> None:
    assert len(TRAIN) >= 480
    assert len(TEST) >= 60
    assert len(SHOWCASE) == 10
    assert all(list(row) == ["plain", "yoda", "topic"] for row in PAIRS)
    assert all(list(row) == ["plain"] for row in SHOWCASE)
    for row in PAIRS + SHOWCASE:
        assert all(value.isascii() and value == value.strip() != "" for value in row.values()), row


def test_the_recipe_shows_the_showcase() -> None:
    recipe = tomllib.loads((FOLDER.parents[1] / "recipes" / "yoda.toml").read_text("utf-8"))
    assert sorted(recipe["data"]["showcase"]) == sorted(row["plain"] for row in SHOWCASE)


def test_lengths() -> None:
    assert [r["plain"] for r in PAIRS + SHOWCASE if not 4 <= len(r["plain"].split()) <= 25] == []


def test_no_plain_sentence_comes_twice() -> None:
    counts = Counter(" ".join(words(row["plain"])) for row in PAIRS + SHOWCASE)
    assert [sentence for sentence, count in counts.items() if count > 1] == []


def test_test_topics_are_unseen() -> None:
    assert {row["topic"] for row in TEST} & {row["topic"] for row in TRAIN} == set()


def test_test_and_showcase_have_no_near_duplicate_in_training() -> None:
    score, left, right = nearest_pair(plain(TRAIN), plain(TEST + SHOWCASE))
    assert score < NEAR_DUPLICATE, (left, right)


def test_interjections_are_known_and_in_about_a_third_of_the_rows() -> None:
    for rows in (TRAIN, TEST):
        share = sum(bare(row["yoda"]) != row["yoda"] for row in rows) / len(rows)
        assert 0.25 <= share <= 0.40
    used = Counter(x for r in TRAIN for x in re.findall(INTERJECTION, r["yoda"]))
    assert min(used[x] for x in ("Yes, hmm", "Hmm", "Mmm", "Herh herh herh", "Hrrm")) >= 20


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_yoda_side_follows_the_form(split: str) -> None:
    for row in read(split):
        turned = bare(row["yoda"])
        assert turned != row["plain"], row
        assert turned[-1] == row["plain"][-1], row  # the end mark stays
        assert turned.count(".") - len(re.findall(r"Mrs?\.", turned)) <= 1, row  # one sentence
        assert "," in turned, row  # it stands after the fronted part
        assert not re.search(r"n't|'re\b|'ve\b|'ll\b", turned), row  # contractions are expanded
        assert missing_words(row) == [], row


def test_the_mix_of_sentences() -> None:
    for rows in (TRAIN, TEST):
        questions = sum(row["plain"].endswith("?") for row in rows) / len(rows)
        commands = sum("you must" in row["yoda"] for row in rows) / len(rows)
        joined = sum(bool(set(JOINERS) & set(words(row["plain"]))) for row in rows) / len(rows)
        assert 0.15 <= questions <= 0.25
        assert 0.18 <= commands <= 0.30
        assert joined >= 0.35  # an upper estimate of two-clause rows: "salt and pepper" counts too


def test_variety() -> None:
    assert distinct_4grams(plain(TRAIN)) > DISTINCT_4GRAMS
    assert distinct_4grams(plain(TEST)) > DISTINCT_4GRAMS
    pattern, share = commonest_skeleton(plain(TRAIN))
    assert share < COMMONEST_SKELETON, pattern


# What a script with a grammar would have made: the guards must refuse it.
TEMPLATED = [
    {"plain": f"The {thing} is {state} in the {place} today.", "yoda": "", "topic": "planted"}
    for thing in ("dog", "lamp", "boat", "cake", "letter")
    for state in ("old", "green", "quiet", "broken", "lovely")
    for place in ("kitchen", "garden", "street", "office")
]


def test_the_4gram_guard_fires() -> None:
    assert distinct_4grams(plain(TEMPLATED)) < DISTINCT_4GRAMS
    # Also when only one training row in twenty is planted.
    assert distinct_4grams(plain(TRAIN + TEMPLATED[: len(TRAIN) // 20])) < DISTINCT_4GRAMS


def test_the_skeleton_guard_fires() -> None:
    pattern, share = commonest_skeleton(plain(TRAIN + TEMPLATED[:25]))
    assert pattern == "the _ is _ in the _ ."
    assert share > COMMONEST_SKELETON


def test_the_near_duplicate_guard_fires() -> None:
    planted = {"plain": TRAIN[0]["plain"].replace("cat", "dog")}
    score, left, _ = nearest_pair(plain(TRAIN), plain([*TEST, planted]))
    assert left == TRAIN[0]["plain"]
    assert score > NEAR_DUPLICATE


def test_the_content_guard_fires() -> None:
    lost = {"plain": "Don't wake the sleeping baby.", "yoda": "Wake the baby, you must not."}
    assert missing_words(lost) == ["sleeping"]
    kept = {
        "plain": "They won't wake, we've heard.",
        "yoda": "Wake, they will not, heard, we have.",
    }
    assert missing_words(kept) == []
