"""The other bundled recipes on the real model: a verdict each, honest where tuning does not win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from record import record
from retone.run_dir import read_jsonl
from test_recipes import facts, run

DECLINED = "not in the handbook"


def told(name: str, folder: Path) -> dict[str, Any]:
    """Run a bundled recipe; what is recorded of it."""
    result = run(folder, name)
    stored = json.loads((result["directory"] / "evaluation" / "scores.json").read_text())
    return {**facts(result), "groups": stored["groups"], "directory": result["directory"]}


def assert_verdict(found: dict[str, Any]) -> None:
    """A verdict in words on the headline metric, and every candidate scored on the same rows."""
    head = found["headline"]
    words = ("tuned beats", "tuned loses to", "not resolved:")
    assert found["verdict"].startswith(words)
    rows = {by[head]["n"] for by in found["scores"].values()}
    assert len(rows) == 1


@pytest.mark.parametrize("name", ["instruct", "structured", "chat", "persona", "saltings"])
def test_recipe(name: str, tmp_path: Path) -> None:
    found = told(name, tmp_path)
    del found["directory"]
    record(name, found)
    assert_verdict(found)


def test_qa(tmp_path: Path) -> None:
    """Learned, invented, declined: the share of answers that say it is not in the handbook."""
    found = told("qa", tmp_path)
    directory = found.pop("directory")
    test = read_jsonl(directory / "data" / "test.jsonl")
    answers = read_jsonl(directory / "evaluation" / "answers.jsonl")
    answers = [row for row in answers if not row["showcase"]]
    declined: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(row["extra"]["group"] for row in test):
        chosen = [a for row, a in zip(test, answers, strict=True) if row["extra"]["group"] == group]
        declined[group] = {
            who: sum(DECLINED in a["answers"][who]["text"].lower() for a in chosen) / len(chosen)
            for who in found["scores"]
        }
    record("qa", {**found, "declined": declined})
    assert_verdict(found)
