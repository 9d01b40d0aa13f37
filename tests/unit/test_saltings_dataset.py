"""The bundled letters: contract, variety, train and test apart, and proof that each guard fires."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from retone.recipe_file import load_recipe
from variety import commonest_skeleton, distinct_4grams, nearest_pair, words

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "saltings"
WORDS = (80, 150)  # of a letter; measured: 96-131
# Bounds; what the letters measure today stands beside each.
DISTINCT_4GRAMS = 0.98
NEAR_DUPLICATE = 0.02
SAME_OPENING = 2  # letters that begin with the same three words
MODERN = re.compile(
    r"\b(?:phone|email|computer|website|okay|ok|photo|electric|television|internet|robot|ai)\b",
    re.IGNORECASE,
)


def read(split: str) -> list[str]:
    rows = map(json.loads, (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines())
    texts = []
    for row in rows:
        assert list(row) == ["text"]
        texts.append(row["text"])
    return texts


TRAIN, TEST, SHOWCASE = read("train"), read("test"), read("showcase")
LETTERS = TRAIN + TEST


def openings(texts: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words(text)[:3]) for text in texts)


def test_sizes() -> None:
    assert (len(TRAIN), len(TEST), len(SHOWCASE)) == (36, 12, 4)
    assert 4000 < sum(len(text.split()) for text in TRAIN) < 4300
    assert 1300 < sum(len(text.split()) for text in TEST) < 1600


@pytest.mark.parametrize("text", LETTERS, ids=lambda text: text[:24])
def test_every_letter_keeps_the_contract(text: str) -> None:
    assert WORDS[0] <= len(text.split()) <= WORDS[1]
    assert text.isascii()
    assert text == text.strip()
    assert "\n" not in text
    assert "  " not in text
    assert text[-1] in ".?!"
    assert not MODERN.search(text)


def test_letters_are_varied() -> None:
    assert distinct_4grams(LETTERS) > DISTINCT_4GRAMS
    assert commonest_skeleton(LETTERS)[1] <= 1 / len(LETTERS)
    assert max(openings(LETTERS).values()) <= SAME_OPENING


def test_train_and_test_share_no_passage() -> None:
    assert nearest_pair(TRAIN, TEST)[0] < NEAR_DUPLICATE


def test_the_guards_fire() -> None:
    assert distinct_4grams([*LETTERS, *LETTERS[:4]]) < DISTINCT_4GRAMS
    assert nearest_pair(TRAIN, [TRAIN[3].replace("tide", "flood")])[0] > NEAR_DUPLICATE
    assert max(openings([TRAIN[0]] * 3).values()) > SAME_OPENING
    assert MODERN.search("The telephone is a phone.")


def test_the_recipe_shows_what_the_dataset_offers() -> None:
    assert load_recipe("saltings").data.showcase == SHOWCASE
