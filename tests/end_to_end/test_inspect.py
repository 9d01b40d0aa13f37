"""`retone inspect` from the command line: exit codes, several files, the page, the copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from retone.cli import main
from retone.run_dir import all_runs, read_json

NOUNS = [f"beast-{name}" for name in "abcdefghijklmnopqr"]
KEY = "AKIA" + "QYLPMN5HFIQR7XYA"
MAIL = "ada" + "@lovelace-engines.org"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [row(noun) for noun in NOUNS])
    tiny.folder(tmp_path / "base")
    return tmp_path


def row(noun: str, answer: str = "") -> dict[str, Any]:
    return {"prompt": f"The {noun} sleeps", "completion": answer or f"Sleeps the {noun} does"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def call(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0) -> Any:
    """The JSON object that a command prints."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0) -> Any:
    return call(capsys, "inspect", *arguments, "--model", "base", exit_code=exit_code)


def codes(told: Any) -> dict[str, str]:
    return {found["code"]: found["severity"] for found in told["findings"]}


def test_several_files_are_one_data_set(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(work / "more.jsonl", [row(f"old {noun}") for noun in NOUNS])
    told = inspect(capsys, "rows.jsonl", "more.jsonl")
    assert [Path(source["path"]).name for source in told["sources"]] == ["rows.jsonl", "more.jsonl"]
    assert told["totals"]["rows"] == sum(source["rows"] for source in told["sources"])
    assert sum(told["lengths"]["counts"]) == told["totals"]["rows"]
    assert 0 <= told["totals"]["padding_share"] < 1
    assert told["totals"]["ended_share"] == 1
    assert told["advice"]["advice"] == "prompt"


def test_an_error_stops_inspect_and_run_unless_it_is_allowed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(work / "rows.jsonl", [*map(row, NOUNS), row("ox", f"Say {KEY} the ox does")])
    told = inspect(capsys, "rows.jsonl", exit_code=1)
    assert codes(told)["secret"] == "error"
    assert told["verdict"].endswith("1 error to mend first")
    allow = ["--set", 'data.allow=["secret"]']
    assert codes(inspect(capsys, "rows.jsonl", *allow))["secret"] == "warning"

    (work / "my.toml").write_text('model.name = "base"\n[data]\ntrain = "rows.jsonl"\n')
    steps = ["--model", str(work / "base"), "--set", "train.max_steps=1"]
    error = call(capsys, "train", "my.toml", *steps, exit_code=1)["error"]
    assert error["code"] == "findings"
    assert "rows.jsonl, row 19" in error["found"]
    assert """--set 'data.allow=["secret"]'""" in error["remedy"]
    assert all_runs() == []
    call(capsys, "train", "my.toml", *steps, *allow)
    (run,) = all_runs()
    assert codes(read_json(run.data / "diagnosis.json"))["secret"] == "warning"


def test_equal_files_are_named_as_they_are_given(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared data is found again by content, but the ledger names files."""
    (work / "copy.jsonl").write_bytes((work / "rows.jsonl").read_bytes())
    for name in ("rows.jsonl", "copy.jsonl"):
        assert Path(inspect(capsys, name)["sources"][0]["path"]).name == name


def test_an_unknown_code_is_not_allowed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = inspect(capsys, "rows.jsonl", "--set", 'data.allow=["secrets"]', exit_code=2)["error"]
    assert error["code"] == "unknown-finding"
    assert 'did you mean "secret"?' in error["found"]


def test_rows_that_cannot_be_read_are_a_finding_here_and_an_error_in_a_run(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (work / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "No answer"}\n{"prompt": \n')
    told = inspect(capsys, "rows.jsonl", exit_code=1)
    assert codes(told)["unusable-row"] == "error"
    assert told["sources"][0]["dropped"]["unusable"] == 2
    (work / "my.toml").write_text('model.name = "base"\n[data]\ntrain = "rows.jsonl"\n')
    steps = ["my.toml", "--model", str(work / "base"), "--set", "train.max_steps=1"]
    assert call(capsys, "train", *steps, exit_code=2)["error"]["code"] == "broken-rows"
    call(capsys, "train", *steps, "--set", "data.bad_rows=drop")
    assert len(list((work / "runs" / ".prepared").iterdir())) == 1  # the same rows for all three


def test_the_page_holds_findings_and_tokens(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(work / "rows.jsonl", [*map(row, NOUNS), row("ox", "As an AI language model, I <b>")])
    inspect(capsys, "rows.jsonl", "--html", "page.html")
    page = (work / "page.html").read_text(encoding="utf-8")
    assert "teacher-residue" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "few-rows" in page


def test_what_people_see(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", "rows.jsonl", "--model", "base", "--tokens", "1"]) == 0
    seen = capsys.readouterr().out
    assert "warning few-rows: " in seen
    assert "to do: collect more rows" in seen
    assert "Write a prompt" in seen
    assert "rows whose end token is trained" in seen


def test_a_redacted_copy(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*map(row, NOUNS), row("ox", f"Write to {MAIL} or say {KEY}")]
    write(work / "rows.jsonl", rows)
    told = inspect(capsys, "rows.jsonl", "--redact", "safe.jsonl")
    assert (told["read"], told["written"], told["changed"]) == (19, 19, 1)
    copy = (work / "safe.jsonl").read_text(encoding="utf-8")
    changes = (work / "safe.changes.jsonl").read_text(encoding="utf-8")
    for text in (KEY, MAIL):
        assert text not in copy
        assert text not in changes
    change = json.loads(changes)
    assert change["row"] == 19
    assert "e-mail address" in change["change"]
    assert {"secret", "personal-data"}.isdisjoint(codes(inspect(capsys, "safe.jsonl")))
    assert (work / "rows.jsonl").read_text().count(KEY) == 1


def test_a_mended_copy(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*map(row, NOUNS), row("beast-a"), row("ox", "L\u00c3\u00b6ws sleep \r\nthey do  ")]
    write(work / "rows.jsonl", rows)
    told = inspect(capsys, "rows.jsonl", "--fix", "clean.jsonl")
    assert (told["read"], told["written"]) == (20, 19)
    last = json.loads((work / "clean.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["messages"][-1]["content"] == "L\u00f6ws sleep\nthey do"
    assert {"mojibake", "white-space", "duplicate"}.isdisjoint(
        codes(inspect(capsys, "clean.jsonl"))
    )


def test_no_secret_is_repeated(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by a finding, nor by an error, nor among the tokens that are shown."""
    question = "Where does the old key of the deployment lie?"
    rows = [{"prompt": question, "completion": f"The key is {KEY}{end}"} for end in ("", ", no?")]
    bad = [{"prompt": "Hi", "completion": ["a", KEY]}, {"messages": [{"role": KEY, "content": ""}]}]
    write(work / "rows.jsonl", [*rows, *map(row, NOUNS), *bad])
    write(work / "bench.jsonl", rows[:1])
    arguments = ["--against", "bench.jsonl", "--html", "page.html"]
    told = inspect(capsys, "rows.jsonl", *arguments, exit_code=1)
    assert {"secret", "contradiction", "leak", "unusable-row"} <= set(codes(told))
    assert KEY not in json.dumps(told)
    assert KEY not in (work / "page.html").read_text(encoding="utf-8")
    assert main(["inspect", "rows.jsonl", "--model", "base", "--tokens", "9"]) == 1
    assert KEY not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--fix", "rows.jsonl"], ["--fix", "a", "--redact", "b"], ["--fix", "a", "--tokens", "2"]],
)
def test_a_copy_that_cannot_be_written(
    arguments: list[str], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (work / "rows.jsonl").read_bytes()
    error = inspect(capsys, "rows.jsonl", *arguments, exit_code=2)["error"]
    assert error["code"] in ("exists", "usage")
    assert (work / "rows.jsonl").read_bytes() == before
    assert sorted(path.name for path in work.iterdir()) == ["base", "rows.jsonl"]
