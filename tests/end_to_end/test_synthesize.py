"""`retone synthesize` against a fake teacher: modes, resume, budget, what is left out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra `teacher` is not installed")

from retone.cli import main
from retone.data.collecting import read_samples
from retone.data.sources import BadRows
from retone.recipe_file import complete_recipe
from retone.run_dir import read_jsonl
from teacher_process import KEY, logged, server
from teacher_server import INJECTIONS

PERSONA = """
name = "Nobody"
who = "You are a test."
real_person = false
do = ["Say little."]
examples = ["I would not say so at all, not today.", "Rain is wet and so am I."]
topics = ["rain", "tea"]
most_words = 40
without = ["hostile"]
[families]
riddle = "a riddle"
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RETONE_TEACHER_KEY", KEY)
    (tmp_path / "nobody.toml").write_text(PERSONA)
    return tmp_path


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with server(tmp_path / "log.jsonl", "--answers", "teacher_server:persona") as url:
        yield url


def made(capsys: pytest.CaptureFixture[str], address: str, *arguments: str) -> dict[str, Any]:
    """The JSON object of a command that ends well."""
    capsys.readouterr()
    given = ["--endpoint", address, "--teacher", "fake", "--json"]
    assert main(["synthesize", *arguments, *given]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def shape(path: Path) -> str:
    """The shape that a file of rows is read as."""
    recipe = complete_recipe({"data": {"train": str(path)}}, "test")
    return read_samples(recipe.data.sources("train")[0], recipe.data, BadRows())[0]


def test_a_persona_becomes_a_dataset(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--count", "60", "--least", "0.8"]
    found = made(capsys, address, "nobody.toml", "-o", "data.jsonl", *asked)
    rows = read_jsonl(work / "data.jsonl")
    left = read_jsonl(work / "data.left_out.jsonl")
    assert len(rows) == found["rows"]
    assert len(rows) + len(left) == 60
    assert found["ended"] == "60 distinct questions stand"
    questions = [row["messages"][0]["content"] for row in rows + left]
    assert len(set(questions)) == 60
    assert {row["gate"] for row in rows} == {"kept", "rewritten"}
    assert all(row["points"] >= 0.8 for row in rows)
    assert all(row["faults"] for row in left)
    families = {row["family"] for row in rows}
    assert "riddle" in families
    assert "hostile" not in families
    for row in rows:
        assert row["teacher"] == f"fake at {address.split('//')[1]}"
        assert all(re.fullmatch("[0-9a-f]{16}", parent) for parent in row["parents"])
    pairs = read_jsonl(work / "data.rewriting.jsonl")
    assert [pair["completion"] for pair in pairs] == [row["messages"][1]["content"] for row in rows]
    chosen = read_jsonl(work / "data.preferences.jsonl")[0]
    assert chosen["rejected"][0]["content"] == rows[0]["plain"]
    assert "no real person is meant" in (work / "data.card.md").read_text()
    assert shape(work / "data.jsonl").startswith("messages")
    assert shape(work / "data.preferences.jsonl").startswith("preference")
    assert shape(work / "data.rewriting.jsonl").startswith("pair ")


def test_the_same_again_costs_nothing_and_says_the_same(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = made(capsys, address, "nobody.toml", "-o", "one.jsonl", "--count", "30")
    sent = len(logged(work / "log.jsonl"))
    second = made(capsys, address, "nobody.toml", "-o", "two.jsonl", "--count", "30")
    assert (work / "one.jsonl").read_bytes() == (work / "two.jsonl").read_bytes()
    assert len(logged(work / "log.jsonl")) == sent
    assert second["meter"]["cached"] == first["meter"]["answered"] == second["meter"]["answered"]
    assert main(["synthesize", "nobody.toml", "-o", "one.jsonl"]) == 2
    assert "there already" in capsys.readouterr().err


def test_a_persona_to_start_from_and_kept_answers_in_the_cache(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "mine.toml", "--from", "persona:lighthouse"]) == 0
    assert "next: retone synthesize mine.toml" in capsys.readouterr().out
    made(capsys, address, "mine.toml", "-o", "data.jsonl", "--count", "2", "--least", "0")
    assert main(["cache", "--delete", "teacher", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == ["teacher"]
    assert main(["new", "x.toml", "--from", "persona:lighthose"]) == 2
    assert "persona:lighthouse" in capsys.readouterr().err


def test_conversations_have_turns(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made(capsys, address, "nobody.toml", "-o", "data.jsonl", "--count", "8", "--turns", "3",
         "--best-of", "1", "--least", "0", "--no-plain")  # fmt: skip
    rows = read_jsonl(work / "data.jsonl")
    assert len(rows) == 8
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 3
        assert "plain" not in row
    assert not (work / "data.rewriting.jsonl").exists()


def test_a_budget_ends_it_and_what_was_made_is_kept(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--price", "10,10", "--budget", "0.05"]
    found = made(capsys, address, "nobody.toml", "-o", "data.jsonl", "--count", "500", *budget)
    assert found["ended"] == "the budget is used up"
    assert 0 < found["rows"] < 500
    assert found["meter"]["spent"] <= 0.05
    rows = read_jsonl(work / "data.jsonl")
    assert sum(row["cost"] for row in rows) <= found["meter"]["spent"]
    priced = ["nobody.toml", "-o", "x.jsonl", "--endpoint", address, "--teacher", "fake",
              "--price", "10,10"]  # fmt: skip
    assert main(["synthesize", *priced]) == 2
    assert "needs a budget" in capsys.readouterr().err
    assert main(["synthesize", *priced, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dollars"] > 0
    assert not (work / "x.jsonl").exists()


def test_a_judge_with_a_price_needs_a_budget(
    work: Path, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    given = ["--endpoint", address, "--teacher", "fake", "--judge", "gpt-5-mini@openai"]
    assert main(["synthesize", "nobody.toml", "-o", "x.jsonl", *given]) == 2
    assert "needs a budget" in capsys.readouterr().err
    assert main(["synthesize", "nobody.toml", "-o", "x.jsonl", *given, "--budget", "nan"]) == 2


def test_a_teacher_whose_rows_all_fail_says_so(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "short.toml").write_text(PERSONA.replace("most_words = 40", "most_words = 5"))
    given = ["--endpoint", address, "--teacher", "fake", "--count", "6"]
    assert main(["synthesize", "short.toml", "-o", "x.jsonl", *given]) == 1
    told = capsys.readouterr().err
    assert "no row was kept" in told
    assert "long" in told
    assert list(work.glob("x*")) == []


def test_another_model_judges(work: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with server(work / "judged.jsonl", "--answers", "teacher_server:persona") as judge:
        made(capsys, address, "nobody.toml", "-o", "data.jsonl", "--count", "6", "--best-of", "3",
             "--judge", f"strict@{judge}")  # fmt: skip
    assert len(logged(work / "judged.jsonl")) >= 18
    assert all("points" in row for row in read_jsonl(work / "data.jsonl"))


def test_other_beginnings(work: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"Plain text number {number} about the weather." for number in range(12)]
    (work / "plain.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made(capsys, address, "nobody.toml", "-o", "styled.jsonl", "--rewrite", "plain.jsonl")
    assert [row["prompt"] for row in read_jsonl(work / "styled.jsonl")] == texts
    made(capsys, address, "nobody.toml", "-o", "own.jsonl", "--author", "plain.jsonl")
    assert [row["completion"] for row in read_jsonl(work / "own.jsonl")] == texts
    questions = [{"prompt": f"Why is it raining on {day}?"} for day in ("Monday", "Tuesday")]
    (work / "seeds.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    found = made(capsys, address, "nobody.toml", "-o", "grown.jsonl", "--evolve", "seeds.jsonl",
                 "--count", "14", "--least", "0")  # fmt: skip
    assert set(found["families"]) >= {"seed", "deeper"}
    assert found["ended"] == "14 distinct questions stand"


def test_documents_become_questions_with_evidence(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work / "docs"
    folder.mkdir()
    line = "The harbour office opens at seven and closes when the last boat is in. "
    (folder / "a.md").write_text(f"# Hours\n\n{line * 3}\n\n# Boats\n\n{'Boats are counted. ' * 9}")
    (folder / "b.html").write_text(
        f"<script>alert('no')</script><h1>Tides</h1><p>{'High water is at noon. ' * 8}</p>"
    )
    (folder / "c.pdf").write_bytes(b"not a pdf at all")
    found = made(capsys, address, "-o", "qa.jsonl", "--documents", "docs")
    rows = read_jsonl(work / "qa.jsonl")
    assert {row["place"] for row in rows} == {"Hours", "Boats", "Tides"}
    texts = "".join(file.read_text() for file in folder.glob("*.[mh]*"))
    assert all(row["evidence"] in texts for row in rows)
    assert "alert" not in json.dumps(rows)
    coverage = found["coverage"]
    assert coverage["chunks"] == coverage["covered"] == 3
    assert coverage["dropped"] == {"the evidence is not in the text": 3}
    assert list(found["documents"]["left_out"]) == [str(Path("docs/c.pdf"))]
    assert shape(work / "qa.jsonl").startswith("qa")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("real_person = false", "real_person = true"), "rights"),
        (("real_person = false\n", ""), "real_person is required"),
        (
            ('topics = ["rain", "tea"]', "topic = []"),
            'unknown field topic (did you mean "topics"?)',
        ),
        (("most_words = 40", 'most_words = "many"'), "most_words: Input should be a valid integer"),
        (('without = ["hostile"]', 'without = ["hostil"]'), 'did you mean "hostile"?'),
        (("most_words = 40", 'languages = ["Deutsch"]'), "Deutsch"),
    ],
)
def test_a_wrong_persona_is_explained(
    work: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], told: str
) -> None:
    (work / "wrong.toml").write_text(PERSONA.replace(*change))
    given = ["--endpoint", "http://127.0.0.1:9/v1", "--teacher", "fake", "-o", "x.jsonl"]
    assert main(["synthesize", "wrong.toml", *given]) == 2
    assert told in capsys.readouterr().err
    assert main(["synthesize", "nobdy", *given]) == 2
    assert "bundled: lighthouse, naturalist, sysadmin" in capsys.readouterr().err


def test_injections_stay_inert(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a teacher writes is data: twenty texts that try to be more, in questions and answers."""
    before = {file for file in work.rglob("*") if file.is_file()}
    with server(work / "log.jsonl", "--answers", "teacher_server:hostile") as url:
        given = ["--endpoint", url, "--teacher", "fake", "--count", "150"]
        assert main(["synthesize", "nobody.toml", "-o", "data.jsonl", *given]) == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    made = {file.name for file in work.rglob("*") if file.is_file()} - {f.name for f in before}
    made -= {"log.jsonl", "replies.sqlite3", "replies.sqlite3-wal", "replies.sqlite3-shm"}
    assert made == {
        "data.jsonl", "data.left_out.jsonl", "data.rewriting.jsonl", "data.preferences.jsonl",
        "data.card.md",
    }  # fmt: skip
    assert not Path("/tmp/pwned.jsonl").exists()
    kept, left = read_jsonl(work / "data.jsonl"), read_jsonl(work / "data.left_out.jsonl")
    faults = {fault.partition(":")[0] for row in left for fault in row["faults"]}
    assert "special-token" in faults
    assert "rubric" not in faults  # the judge saw nothing outside its fence
    answers = "".join(row["messages"][1]["content"] for row in kept + left)
    seen = [one for one in INJECTIONS if one.strip() in answers]
    assert len(seen) >= 18, set(INJECTIONS) - set(seen)
    assert "<|im_start|>" not in "".join(row["messages"][1]["content"] for row in kept)


def test_no_key_is_written_anywhere(
    work: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--endpoint", address, "--teacher", "fake", "--count", "10"]
    assert main(["synthesize", "nobody.toml", "-o", "data.jsonl", *given]) == 0
    told = capsys.readouterr()
    assert "rows in data.jsonl" in told.out
    assert KEY not in told.out + told.err
    for file in work.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert os.environ["RETONE_TEACHER_KEY"] == KEY
