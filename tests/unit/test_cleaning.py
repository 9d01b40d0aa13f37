"""Copies of data: every shape is read back as it was, and only what is wrong is changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from retone.config import DataSection, SourceSection
from retone.data.cleaning import Cleaned, Kind, cleaned_lines
from retone.data.collecting import read_samples
from retone.data.formats import FORMATS, Sample
from retone.data.sources import BadRows

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "warmth", "arguments": {"c": 1}}}],
    },
    {"role": "tool", "content": "21 degrees", "name": "warmth"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "It is ", "loss_weight": 0.0},
            {"type": "text", "text": "21 degrees.", "loss_weight": 1.0},
        ],
        "reasoning_content": "The tool says so.",
    },
]
TOOLS = [{"type": "function", "function": {"name": "warmth", "parameters": {}}}]
ROWS: dict[str, dict[str, Any]] = {
    **{name: json.loads(form.example) for name, form in FORMATS.items()},
    "everything": {"messages": TURNS, "tools": TOOLS, "topic": "weather"},
    "masked turn": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Good day!", "loss_weight": 0.0},
            {"role": "user", "content": "Once more"},
            {"role": "assistant", "content": "Good evening!", "loss_weight": 2.0},
        ]
    },
    "good": {"prompt": "Hi", "completion": "Good day!", "label": True},
    "bad": {"prompt": "Hi", "completion": "What?", "label": False},
}


def samples(path: Path) -> list[Sample]:
    bad = BadRows()
    section = DataSection(train=str(path))
    _, found = read_samples(SourceSection(path=str(path)), section, bad)
    read = list(found)
    assert bad.count == 0, bad.texts
    return read


def copied(path: Path, kind: Kind) -> tuple[Path, Cleaned, list[dict[str, Any]]]:
    done = Cleaned()
    changes: list[dict[str, Any]] = []
    target = path.with_name(f"{kind}.jsonl")
    lines = cleaned_lines(samples(path), kind, done, changes.append)
    target.write_text("".join(lines), encoding="utf-8")
    assert len(changes) == done.changes
    return target, done, changes


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def told(sample: Sample) -> dict[str, Any]:
    """All fields but the place."""
    fields = {**vars(sample)}
    del fields["source"], fields["row"]
    return fields


@pytest.mark.parametrize("kind", ["fix", "redact"])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_without_faults_is_read_back_as_it_was(name: str, kind: Kind, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [ROWS[name]])
    target, _, changes = copied(source, kind)
    assert changes == []
    assert [told(sample) for sample in samples(target)] == [told(s) for s in samples(source)]


def test_only_texts_are_changed_wherever_they_stand(tmp_path: Path) -> None:
    mail = "ada" + "@lovelace-engines.org"
    text = json.dumps(ROWS["everything"]).replace("21 degrees", mail).replace("weather", mail)
    target, _, changes = copied(write(tmp_path / "rows.jsonl", [json.loads(text)]), "redact")
    places = [change["field"] for change in changes]
    assert places == ["topic", "turn 4", "turn 5"]
    assert mail not in target.read_text()
    (sample,) = samples(target)
    assert sample.messages[-1].spans == (("It is ", 0.0), ("[E-MAIL ADDRESS].", 1.0))


def test_white_space_between_weighted_parts_stays(tmp_path: Path) -> None:
    row = json.loads(json.dumps(ROWS["everything"]))
    row["messages"][-1]["content"][1]["text"] = "21\r\ndegrees"
    target, done, _ = copied(write(tmp_path / "rows.jsonl", [row]), "fix")
    (sample,) = samples(target)
    assert sample.messages[-1].content == "It is 21\ndegrees"
    assert done.changes == 1


def test_equal_rows_are_left_out_by_fix_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [ROWS["pair"]] * 3)
    _, fixed, changes = copied(source, "fix")
    assert (fixed.read, fixed.written) == (3, 1)
    assert {change["field"] for change in changes} == {"row"}
    _, redacted, _ = copied(source, "redact")
    assert (redacted.read, redacted.written) == (3, 3)


def test_what_stands_across_two_parts_is_redacted(tmp_path: Path) -> None:
    row = json.loads(json.dumps(ROWS["everything"]))
    row["messages"][-1]["content"] = [
        {"type": "text", "text": "Ask ada@love", "loss_weight": 0.5},
        {"type": "text", "text": "lace-engines.org, please.", "loss_weight": 1.0},
    ]
    target, _, changes = copied(write(tmp_path / "rows.jsonl", [row]), "redact")
    (sample,) = samples(target)
    assert sample.messages[-1].spans == (("Ask [E-MAIL ADDRESS]", 0.5), (", please.", 1.0))
    assert [change["field"] for change in changes] == ["turn 5"]


def test_tools_and_calls_are_redacted_and_not_mended(tmp_path: Path) -> None:
    row = json.loads(json.dumps(ROWS["everything"]))
    row["messages"][2]["tool_calls"][0]["function"]["arguments"] = {"text": "as it is \n"}
    row["tools"][0]["function"]["description"] = "asks ada@lovelace-engines.org"
    source = write(tmp_path / "rows.jsonl", [row])
    target, _, changes = copied(source, "redact")
    assert [change["field"] for change in changes] == ["tools"]
    assert "lovelace" not in target.read_text()
    _, _, changes = copied(source, "fix")
    assert changes == []


def test_changes_show_where_texts_differ(tmp_path: Path) -> None:
    row = {
        "prompt": "Hi",
        "completion": "word " * 50 + "\r\nend, write to ada@lovelace-engines.org",
    }
    _, _, (change,) = copied(write(tmp_path / "rows.jsonl", [row]), "fix")
    assert "\\r\\n" in change["change"].partition(" -> ")[0]
    assert "lovelace" not in change["change"]
