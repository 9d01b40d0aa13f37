"""`retone review`: decisions stand in the file, nothing is executed, nobody else gets in."""

from __future__ import annotations

import html
import io
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retone.cli import main
from retone.run_dir import read_jsonl
from retone.teacher.reviewing import Review
from retone.workflows import review as workflow

HOSTILE = "<script>alert(1)</script> {{ 7 * 7 }} [red]x[/red] \x1b[2J </textarea>"
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}],
     "family": "everyday", "points": 0.8},
    {"prompt": "Plain.", "completion": "Styled."},
    {"question": "Who?", "answer": HOSTILE, "evidence": "I."},
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def address(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page of a review that runs in a thread, and ends with the test."""
    opened: list[str] = []
    there = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda url: (opened.append(url), there.set()))
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(workflow.review(data)))
    thread.start()
    assert there.wait(10)
    yield opened[0]
    if not data.with_name("data.reviewed.jsonl").exists():  # nobody stopped it
        post(opened[0], 0, decision="stop")
    thread.join(10)
    assert done


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as found:
        return str(found.read().decode())


def post(address: str, at: int, **fields: str) -> str:
    data = urllib.parse.urlencode(fields).encode()
    with urllib.request.urlopen(f"{address}{at}", data) as found:
        return str(found.geturl())


def test_rows_are_decided_in_the_page(address: str, data: Path) -> None:
    first = get(address)
    assert "row 1 of 3" in first
    assert "everyday" in first
    assert post(address, 0, decision="accepted", answer="Ho.\r\n").endswith("/1")
    assert post(address, 1, decision="accepted", answer="Restyled.").endswith("/2")
    assert [row.get("review") for row in read_jsonl(data)] == ["accepted", "edited", None]
    assert read_jsonl(data)[1]["completion"] == "Restyled."
    third = get(f"{address}2")
    assert "<script>alert" not in third
    assert html.escape("<script>alert(1)</script> {{ 7 * 7 }}", quote=False) in third
    assert "\x1b" not in third
    post(address, 2, decision="rejected")
    post(address, 0, decision="open")
    post(address, 0, decision="stop")
    written = data.with_name("data.reviewed.jsonl")
    for _ in range(200):
        if written.exists():
            break
        time.sleep(0.05)
    kept = read_jsonl(written)
    assert kept == [{"prompt": "Plain.", "completion": "Restyled."}]
    assert Review.open(data).next_open() == 0


def test_what_a_page_cannot_show_is_accepted_as_it_is(address: str, data: Path) -> None:
    shown = html.unescape(get(f"{address}2").split("<textarea")[1].split(">", 1)[1])
    shown = shown.split("</textarea>\n<div")[0]
    post(address, 2, decision="accepted", answer=shown)
    row = read_jsonl(data)[2]
    assert row["review"] == "accepted"
    assert row["answer"] == HOSTILE


@pytest.mark.parametrize("place", ["../0", "wrong/0", "", "0/../../etc/passwd"])
def test_nobody_gets_in_without_the_key(address: str, place: str) -> None:
    root = "/".join(address.split("/")[:3])
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{root}/{place}")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(address, host="evil.example")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{address}99")


def test_rows_are_decided_in_the_terminal(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nx\ne\nBetter.\nq\n"))
    assert main(["review", str(data), "--terminal", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["accepted"], told["edited"], told["open"], told["rows"]) == (1, 1, 1, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("r\n"))
    assert main(["review", str(data), "--terminal"]) == 0
    assert "\x1b" not in capsys.readouterr().err
    assert [row["review"] for row in read_jsonl(data)] == ["accepted", "edited", "rejected"]


def test_what_cannot_be_reviewed_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "x"}\n[1]\n{"prompt": "a", "completion": 3}\n')
    before = wrong.read_bytes()
    assert main(["review", str(wrong), "--terminal"]) == 2
    told = capsys.readouterr().err
    assert "3 lines" in told
    assert "line 2" in told
    assert wrong.read_bytes() == before
    assert main(["review", str(tmp_path / "none.jsonl")]) == 2
