"""evaluate, compare, seeds, thresholds: the evidence on a tiny random model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from retone.chat_template import ChatTemplate
from retone.cli import main
from retone.conversation import Conversation, Message
from retone.evaluation.candidates import answer_all, candidates, copy_prompt
from retone.evaluation.style import style_markers, written_instruction
from retone.inference.engine import Engine
from retone.inference.sampling import Answer, Sampling
from retone.run_dir import Run, all_runs, read_json, read_jsonl

RECIPE = """
model.name = "{base}"
[data]
train = "rows.jsonl"
test = "test.jsonl"
task = "rewrite"
[method]
rank = 2
[train]
max_steps = 4
batch_size = 4
learning_rate = 3e-2
[evaluate]
max_new_tokens = 5
"""


def pair(number: int) -> str:
    tail = " and slept" * (number % 3)
    row = {"prompt": f"Dog {number} ran{tail}", "completion": f"Ran{tail} dog {number}, yes"}
    return json.dumps(row) + "\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(RECIPE.format(base=tiny.folder(tmp_path / "base")))
    (tmp_path / "rows.jsonl").write_text("".join(pair(n) for n in range(12)))
    (tmp_path / "test.jsonl").write_text("".join(pair(n) for n in range(100, 108)))
    return tmp_path


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_evaluate_again_and_on_another_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = as_json(capsys, "run", "my.toml")
    again = as_json(capsys, "evaluate", "latest")
    assert again["scores"] == first["scores"]
    assert again["differences"] == first["differences"]
    for by in first["scores"].values():
        for found in by.values():
            assert found["value"] is not None or found["reason"]
    copied = first["scores"]["copy"]
    assert 0 < copied["chrf"]["low"] <= copied["chrf"]["value"] <= copied["chrf"]["high"]
    assert "perplexity" not in copied  # nobody's likelihood
    assert first["scores"]["tuned"]["perplexity"]["value"] > 1
    (work / "other.jsonl").write_text("".join(pair(n) for n in range(200, 203)))
    other = as_json(capsys, "evaluate", "latest", "--test", "other.jsonl")
    assert other["scores"]["copy"]["bleu"]["n"] == 3
    assert Path(other["report"]).is_file()
    assert read_json(Run(Path(first["run"])).scores)["scores"] == first["scores"]


def test_fail_under(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, "run", "my.toml")
    assert main(["evaluate", "latest", "--fail-under", "bleu=0"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "latest", "--fail-under", "bleu=101", "--fail-under", "ter=-1"]) == 1
    told = capsys.readouterr().err
    assert "bleu" in told
    assert "asked 101" in told
    assert "ter" in told
    assert main(["evaluate", "latest", "--fail-under", "blue=1"]) == 2
    assert 'did you mean "bleu"' in capsys.readouterr().err
    assert main(["evaluate", "latest", "--fail-under", "bleu=high"]) == 2


def test_compare(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, "run", "my.toml", "--name", "one")
    as_json(capsys, "run", "my.toml", "--name", "two", "--set", "method.rank=4")
    told = as_json(capsys, "compare", "one", "two")
    assert {row["field"] for row in told["settings"]} == {"method.rank", "method.alpha"}
    assert told["settings"][0]["values"] == {"one": 2, "two": 4}
    assert set(told["scores"]) == {"one", "two"}
    assert set(told["differences"]) == {"two-one"}
    assert told["differences"]["two-one"]["chrf"]["n"] == 8
    page = Path(told["report"]).read_text()
    assert "method.rank" in page
    assert "Ran and slept dog 100, yes" in page
    assert main(["compare", "one", "two"]) == 0
    assert "settings that differ" in capsys.readouterr().out
    assert main(["compare", "one", "one"]) == 2
    assert main(["compare", "one"]) == 2


def test_seeds_train_several_and_show_the_spread(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = as_json(capsys, "run", "my.toml", "--set", "train.seeds=[0,1,2]")
    assert [row["seed"] for row in told["seeds"]] == [0, 1, 2]
    assert len({row["run"] for row in told["seeds"]}) == 3
    assert len({row["scores"]["perplexity"] for row in told["seeds"]}) == 3
    capsys.readouterr()
    assert main(["run", "my.toml", "--set", "train.seeds=[0,1,2]"]) == 0
    assert "over seeds 0, 1, 2" in capsys.readouterr().out


def test_no_rows_no_score(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "rows.jsonl").write_text(pair(1))
    (work / "my.toml").write_text((work / "my.toml").read_text().replace('test = "test.jsonl"', ""))
    told = as_json(capsys, "run", "my.toml", code=2)
    assert told["error"]["code"] == "no-rows"
    assert all_runs() == []  # known before anything is trained


def test_one_test_row_gets_words_not_an_interval(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "test.jsonl").write_text(pair(100))
    told = as_json(capsys, "run", "my.toml")
    assert told["verdict"].startswith("not resolved")
    assert told["scores"]["copy"]["chrf"]["low"] is None
    assert "one row" in told["scores"]["copy"]["chrf"]["reason"]
    assert "NaN" not in json.dumps(told)


def test_long_validation_rows_set_the_length(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A validation row longer than every training row is still used."""
    for number in range(4):
        lines = [pair(n) for n in range(12)]
        row = {"prompt": f"Dog {number} " + "and on " * 30, "completion": "Home"}
        (work / "rows.jsonl").write_text("".join(lines) + json.dumps(row) + "\n")
        told = as_json(capsys, "inspect", "my.toml")
        assert sum(source["used"] - source["tested"] for source in told["sources"]) == 13


def engine() -> Engine:
    return Engine(tiny.model(), tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))


def test_answers_are_kept_by_content_and_resumed(tmp_path: Path) -> None:
    """A second sitting asks only what is missing; a line that a kill cut short is asked again."""
    asked: list[int] = []

    def respond(prompts: Any, sampling: Sampling) -> list[Answer]:
        asked.append(len(prompts))
        return [Answer(messages[-1].content.upper(), 1, True) for messages in prompts]

    made = candidates(engine(), task="rewrite", instruction="x", base="b", tuned="t")
    fake = made[-1].__class__("tuned", "tuned", "", respond, identity="abc")
    prompts = [[Message("user", f"say {n}")] for n in range(7)]

    def run(count: int, sampling: Sampling) -> list[Answer]:
        return answer_all(
            fake, prompts[:count], sampling, folder=tmp_path, chunk=3, tick=lambda *_: None
        )

    greedy = Sampling()
    assert [a.text for a in run(4, greedy)] == ["SAY 0", "SAY 1", "SAY 2", "SAY 3"]
    assert asked == [3, 1]
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-10])
    assert [a.text for a in run(7, greedy)] == [f"SAY {n}" for n in range(7)]
    assert asked == [3, 1, 3, 1]
    run(7, Sampling(temperature=1.0))  # another way to pick is another answer
    assert asked[4:] == [3, 3, 1]


def test_candidates_are_the_same_callable() -> None:
    made = candidates(engine(), task="rewrite", instruction="Be Yoda.", base="b", tuned="t")
    assert [c.name for c in made] == ["copy", "base", "prompted", "tuned"]
    prompts = [[Message("user", "The cat")], [Message("system", "x"), Message("user", "A dog")]]
    for candidate in made:
        assert len(candidate.respond(prompts, Sampling(max_new_tokens=3))) == 2
    assert [a.text for a in copy_prompt(prompts, Sampling())] == ["The cat", "A dog"]
    chat = candidates(engine(), task="chat", instruction="Be Yoda.", base="b", tuned="t")
    assert [c.name for c in chat] == ["base", "prompted", "tuned"]
    likelihood = made[1].likelihood
    assert likelihood is not None
    row = Conversation((Message("user", "The cat"), Message("assistant", "Sleeps, it does.")))
    ((nats, tokens, size),) = likelihood([row])
    assert nats > 0
    assert tokens > 1
    assert size == len("Sleeps, it does.")


def test_the_written_instruction_names_what_marks_the_style() -> None:
    nouns = ("cat", "dog", "fox", "owl", "bee", "ant", "cow", "pig")
    colours = ("red", "blue", "old")
    turns = [(f"The {n} is {c}.", f"{c.title()}, the {n} is, hmm.") for n in nouns for c in colours]
    rows = [Conversation((Message("user", a), Message("assistant", b))) for a, b in turns]
    assert style_markers(rows)[0] == "hmm"
    told = written_instruction(rows, "Be Yoda.")
    assert told.startswith("Be Yoda.")
    assert told.count("User: The") == 4
    assert "about 5 words" in told
    assert told == written_instruction(rows, "Be Yoda.")
    assert written_instruction([], "Be brief.") == "Be brief."  # trained on plain text alone


def test_answers_stay_on_disk_between_runs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, "run", "my.toml")
    kept = {path: path.read_text() for path in (work / "runs" / ".answers").iterdir()}
    assert len(kept) == 3  # base, prompted, tuned
    as_json(capsys, "run", "my.toml", "--set", "method.rank=4")
    now = list((work / "runs" / ".answers").iterdir())
    assert len(now) == 4  # the base answers were there already
    assert all(len(read_jsonl(path)) == 8 for path in now)


def test_memory_does_not_grow_with_rows(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight times the rows, scored in processes of their own: the same peak but for the texts."""
    as_json(capsys, "run", "my.toml")
    script = (
        "import sys; from retone.cli import main; from retone.training.loop import peak_memory; "
        "assert main(['evaluate', 'latest', '--test', sys.argv[1], '--json']) == 0; "
        "print(peak_memory(), file=sys.stderr)"
    )
    peaks = {}
    for rows in (64, 512):
        name = f"{rows}.jsonl"
        (work / name).write_text("".join(pair(n) for n in range(1000, 1000 + rows)))
        done = subprocess.run(
            [sys.executable, "-c", script, name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["scores"]["tuned"]["bleu"]["n"] == rows
        peaks[rows] = int(done.stderr.split()[-1])
    assert peaks[512] < peaks[64] + 60e6  # a batch comes and goes with 20 to 40 MB
