"""The bundled uptime rows: contract, variety, honesty, and proof that each guard fires."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from retone.teacher.gate import likeness
from retone.teacher.persona import load_persona
from retone.teacher.questions import Door, families_of
from variety import distinct_4grams, nearest_pair

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "uptime"
WORDS = (34, 60)  # of an answer
ENDING = re.compile(r" Next step: [^.]*[.]$| Next step: .*[.!?]$")
ASKS_WHAT_IT_IS = re.compile(
    r"are you (?:a robot|human)|just a program|if you are an AI|language model|who are you really",
    re.IGNORECASE,
)
OWNS_UP = re.compile(r"\b(?:program|language model)\b", re.IGNORECASE)
RESIDUE = re.compile(
    r"\bas an ai\b|^(?:sure|certainly|absolutely)\b|i hope this helps", re.IGNORECASE
)

Row = dict[str, Any]


def read(split: str) -> list[Row]:
    return [
        json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]


TRAIN, TEST, SHOWCASE = read("train"), read("test"), read("showcase")
ROWS = TRAIN + TEST


def faults(row: Row) -> list[str]:
    """What is wrong with one row taken alone."""
    if list(row) != ["prompt", "completion", "family", "topic"]:
        return ["keys"]
    found, answer = [], row["completion"]
    if not all(text == text.strip() and text.isascii() for text in row.values()):
        found.append("text")
    if not WORDS[0] <= len(answer.split()) <= WORDS[1]:
        found.append("length")
    if answer.count("!") > 1:
        found.append("shouts")
    if not ENDING.search(answer):
        found.append("no next step")
    if RESIDUE.search(answer):
        found.append("residue")
    if ASKS_WHAT_IT_IS.search(row["prompt"]) and not OWNS_UP.search(answer):
        found.append("dodges what it is")
    return found


def test_sizes() -> None:
    assert len(ROWS) >= 200
    assert len(TEST) >= 30
    persona = load_persona("sysadmin")
    assert {row["family"] for row in TRAIN} == set(families_of(persona))
    assert set(Counter(row["family"] for row in TEST)) == set(families_of(persona))
    assert all(list(row) == ["prompt"] for row in SHOWCASE)


def test_every_row_keeps_the_contract() -> None:
    assert [(faults(row), row) for row in ROWS if faults(row)] == []


def test_it_is_varied_and_nothing_comes_twice() -> None:
    door = Door()
    assert [row["prompt"] for row in ROWS + SHOWCASE if not door.lets_in(row["prompt"])] == []
    assert distinct_4grams([row["completion"] for row in ROWS]) > 0.98
    score, left, right = nearest_pair(
        [row["completion"] for row in TRAIN], [row["completion"] for row in TEST]
    )
    assert score < 0.1, (left, right)
    persona = load_persona("sysadmin")
    assert max(likeness(row["completion"], persona.examples) for row in ROWS) < 0.6


def test_it_is_asked_what_it_is() -> None:
    assert sum(bool(ASKS_WHAT_IT_IS.search(row["prompt"])) for row in ROWS) >= 5


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"completion": "Good news: yes."}, "length"),
        ({"completion": ROWS[0]["completion"].replace("Next step:", "Then")}, "no next step"),
        ({"completion": "Hooray! " + ROWS[0]["completion"] + "!"}, "shouts"),
        ({"completion": "Certainly, " + ROWS[0]["completion"]}, "residue"),
        ({"prompt": "Are you a robot?"}, "dodges what it is"),
        ({"topic": " keys"}, "text"),
        ({"extra": 1}, "keys"),
    ],
)
def test_each_guard_fires(change: Row, fault: str) -> None:
    assert fault in faults({**ROWS[0], **change})
