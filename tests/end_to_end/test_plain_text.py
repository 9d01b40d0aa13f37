"""The objective `text`: plain text trained on, held out, judged by likelihood and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_commands import run_json

import tiny
from retone.cli import main
from retone.run_dir import Run, read_json, read_jsonl

RECIPE = """
model.name = "{base}"
[data]
train = "texts.jsonl"
eval_fraction = 0.3
deduplicate = "none"       # the texts are much alike
allow = ["leak"]
showcase = ["On the old piano"]
[train]
epochs = 2
batch_size = 4
learning_rate = 1e-2
"""
TEXT = "{} sleeps on the old piano while rain taps at the window of number {}, who knows why."
NAMES = ("The cat", "A dog", "My uncle", "Nobody", "The clock", "An owl", "A mouse", "The moon")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = tiny.folder(tmp_path / "base")
    (tmp_path / "my.toml").write_text(RECIPE.format(base=base))
    texts = [
        f"{TEXT.format(name, n)} {TEXT.format(NAMES[n % 8], 7 * n)}" for n, name in enumerate(NAMES)
    ]
    texts += [text.replace("piano", "kettle").replace("rain", "snow") for text in texts]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return tmp_path


def test_plain_text_is_trained_held_out_and_judged(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_json(capsys, "run", "my.toml")
    run = Run(Path(result["run"]))
    recipe = read_json(run.resolved)["recipe"]
    assert (recipe["data"]["task"], recipe["objective"]["kind"]) == ("text", "text")
    assert set(result["scores"]) == {"base", "tuned"}
    before, after = (result["scores"][name]["perplexity"] for name in ("base", "tuned"))
    assert before["n"] == after["n"] == len(run.split("test").read_text().splitlines()) > 2
    assert after["value"] < before["value"]
    assert "perplexity" in result["verdict"]
    assert set(result["scores"]["tuned"]) == {"perplexity", "bits_per_byte"}
    (source,) = read_json(run.ledger)["sources"]
    assert source["used"] == source["read"] == 16
    assert source["tokens"]["masked"] == source["rows"]  # the first token of each row

    answers = read_jsonl(run.answers)
    shown = [row for row in answers if row["showcase"]]
    assert [row["prompt"] for row in shown] == ["On the old piano"]
    texts = [json.loads(line)["text"] for line in run.split("test").read_text().splitlines()]
    assert [row["prompt"] + row["reference"] for row in answers if not row["showcase"]] == texts
    assert all(len(row["prompt"].split()) == 16 for row in answers if not row["showcase"])
    assert "perplexity" in Path(result["report"]).read_text()
    assert run_json(capsys, "ask", run.name, "Who?")["tokens"] > 0


def test_the_perplexity_is_that_of_the_whole_text(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against plain transformers, text by text."""
    result = run_json(capsys, "run", "my.toml", "--set", "model.dtype=float32")
    run = Run(Path(result["run"]))
    model, tokenizer = tiny.model(), tiny.tokenizer()
    nats, tokens = 0.0, 0
    for line in run.split("test").read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.no_grad():
            spoken = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        nats -= float(spoken.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    expected = float(torch.tensor(nats / tokens).exp())
    assert result["scores"]["base"]["perplexity"]["value"] == pytest.approx(expected, rel=1e-4)


def test_a_test_file_holds_texts_and_what_does_not_fit_is_counted(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"messages": [{"role": "user", "content": "Who?"},
                         {"role": "assistant", "content": "Nobody at all."}]}  # fmt: skip
    text = {"text": TEXT.format("The kettle", 99)}
    other = {"text": "A quite different text on windows, clocks and the rain of yesterday night."}
    (work / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (text, other)))
    (work / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    held = 'data.test=[{path="held.jsonl"}, {path="chats.jsonl"}]'
    result = run_json(capsys, "run", "my.toml", "--set", held)
    run = Run(Path(result["run"]))
    assert result["scores"]["tuned"]["perplexity"]["n"] == 2
    dropped = [source["dropped"] for source in read_json(run.ledger)["sources"]]
    assert {"not-plain-text": 1} in dropped
    again = run_json(capsys, "evaluate", run.name, "--test", "held.jsonl")
    assert again["scores"]["tuned"]["perplexity"]["n"] == 2
    capsys.readouterr()
    assert main(["evaluate", run.name, "--test", "chats.jsonl", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "no-rows"
    run_json(capsys, "run", "my.toml", "--set", held, "--name", "other", "--epochs", "1")
    capsys.readouterr()
    assert main(["compare", run.name, "other", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "plain-text"


def test_texts_too_short_to_judge_are_dropped(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"text": "A longer text on rain and windows, and why."}]
    (work / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_json(capsys, "run", "my.toml", "--test", "held.jsonl")
    assert result["scores"]["tuned"]["perplexity"]["n"] == 1
    sources = read_json(Run(Path(result["run"])).ledger)["sources"]
    assert {"nothing-trained": 2} in [source["dropped"] for source in sources]
    again = run_json(capsys, "evaluate", "latest", "--test", "held.jsonl")
    assert again["scores"]["tuned"]["perplexity"]["value"] == pytest.approx(
        result["scores"]["tuned"]["perplexity"]["value"], rel=1e-6
    )


def test_an_objective_that_does_not_fit_the_rows_is_an_error(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "my.toml", "--set", "objective.kind=sft", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "plain-text"
    assert "objective.kind" in error["remedy"]
