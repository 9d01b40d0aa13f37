"""The verbs on a tiny random model: reuse, resume, chat, JSON, the Python API, plain peft."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import retone
import tiny
from retone.cli import main
from retone.run_dir import Run, all_runs, find_run, read_json, read_jsonl

RECIPE = """
model.name = "{base}"
[data]
train = "rows.csv"
columns = {{ prompt = "plain", completion = "styled" }}
system = "Be Yoda."
showcase = ["Hello there."]
[method]
rank = 4
[train]
epochs = 3
batch_size = 8
learning_rate = 1e-2
evaluate_every = 2
[evaluate]
max_new_tokens = 6
"""
NOUNS = ["cat", "dog", "bird", "fish", "mouse", "horse", "goat", "sheep", "duck", "goose", "hen"]
NOUNS += ["cow", "pig", "bee", "ant", "fox", "owl", "bat"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = tiny.folder(tmp_path / "base")
    (tmp_path / "my.toml").write_text(RECIPE.format(base=base))
    rows = [f"The {noun} sleeps,Sleeps the {noun} does" for noun in NOUNS]
    (tmp_path / "rows.csv").write_text("plain,styled\n" + "\n".join(rows) + "\n")
    return tmp_path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_remembers_everything_and_is_reused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_json(capsys, "run", "my.toml")
    assert set(first["scores"]) >= {"copy", "base", "tuned"}
    bleu = first["scores"]["tuned"]["bleu"]
    assert bleu["n"] == 2
    assert "tok:13a" in first["signatures"]["bleu"]
    assert "tuned-base" in first["differences"]
    assert "prompted" in first["scores"]
    report = Path(first["report"]).read_text()
    assert report.startswith("<!doctype html>")
    assert "few-rows" in report  # what was found about the data
    run = Run(Path(first["run"]))
    assert run.status == "finished"
    for path in (run.resolved, run.manifest, run.template_lock, run.metrics, run.ledger,
                 run.split("train"), run.split("validation"), run.split("test"), run.adapter,
                 run.training, run.scores, run.answers):  # fmt: skip
        assert path.exists(), path
    manifest = read_json(run.manifest)
    assert len(manifest["base"]["sha256"]) == 64
    assert set(manifest["data_sha256"]) == {"train"}
    assert manifest["versions"]["torch"]
    chosen = read_json(run.resolved)["chosen"]
    assert all(choice["because"] for choice in chosen.values())
    lines = read_jsonl(run.metrics)
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert any("eval_loss" in line for line in lines)

    again = run_json(capsys, "run", "my.toml")
    assert again == first
    assert len(all_runs()) == 1

    other = run_json(capsys, "run", "my.toml", "--epochs", "1")
    assert other["run"] != first["run"]
    fresh = run_json(capsys, "run", "my.toml", "--fresh", "--name", "second")
    assert Path(fresh["run"]).name == "second"
    with (work / "rows.csv").open("a") as file:
        file.write("The wolf sleeps,Sleeps the wolf does\n")
    changed = run_json(capsys, "run", "my.toml")
    assert len(all_runs()) == 4
    assert find_run("latest").path == Path(changed["run"])

    listed = run_json(capsys, "runs", "--delete", "second")
    assert listed["deleted"] == ["second"]
    assert len(listed["runs"]) == 3
    assert all(row["status"] == "finished" and row["bytes"] > 0 for row in listed["runs"])


def test_killed_and_run_again_is_one_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real process, stopped by SIGTERM in the middle of training, resumed by the same command."""
    command = [sys.executable, "-m", "retone", "run", "my.toml", "--set", "train.max_steps=300"]
    command += ["--set", "train.save_every=5"]
    log = work / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
        metrics = work / "runs" / "my" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if metrics.is_file() and len(metrics.read_text().splitlines()) > 20:
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 130, log.read_text()
    assert "is saved" in log.read_text()
    run = Run(work / "runs" / "my")
    assert run.status == "interrupted"
    capsys.readouterr()
    assert main(["ask", "my", "Hello"]) == 2  # not trained yet
    result = run_json(capsys, "run", "my.toml", "--set", "train.max_steps=300",
                      "--set", "train.save_every=5")  # fmt: skip
    assert Path(result["run"]).name == "my"
    assert len(all_runs()) == 1
    assert [line["step"] for line in read_jsonl(run.metrics)] == list(range(1, 301))


def test_train_and_resume(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_json(capsys, "train", "my.toml")
    assert first["steps"] == 6
    assert first["parameters"]["trained"] < first["parameters"]["total"]
    again = run_json(capsys, "train", "my.toml", "--resume")
    assert again["run"] == first["run"]
    assert run_json(capsys, "train", "my.toml")["run"] != first["run"]


def test_minutes_end_a_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "train", "my.toml", "--set", "train.minutes=0.02")
    assert result["seconds"] >= 1.2
    assert result["steps"] >= 1


def test_inspect_shows_what_is_trained(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "inspect", "my.toml")
    (source,) = told["sources"]
    assert source["read"] == source["used"] == 18
    assert (source["rows"], source["validated"], source["tested"]) == (15, 1, 2)
    assert source["tokens"]["trained"] == told["tokens"]["trained"] > 0
    assert [found["code"] for found in told["findings"]] == ["few-rows", "few-steps"]
    assert told["verdict"] == "15 of 18 samples are trained on; 1 validate, 2 test"
    assert main(["inspect", "my.toml", "--tokens", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("«Sleeps the ") == 2
    assert shown.count("<|im_end|>»") == 2
    assert "«The" not in shown


def test_several_sources_and_a_changed_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of sources has a ledger each; prepared data is found again until a byte changes."""
    (work / "more.jsonl").write_text(
        "".join(
            json.dumps({"plain": f"A {noun} eats", "styled": f"Eats a {noun}, yes"}) + "\n"
            for noun in NOUNS
        )
    )
    text = (work / "my.toml").read_text().replace('train = "rows.csv"\n', "")
    text += '[[data.train]]\npath = "rows.csv"\n[[data.train]]\npath = "more.jsonl"\nsample = 10\n'
    (work / "my.toml").write_text(text)
    told = run_json(capsys, "inspect", "my.toml")
    first, second = told["sources"]
    assert first["path"].endswith("rows.csv")
    assert second["dropped"] == {"not-sampled": 8}
    assert told["verdict"].endswith("8 are left out; 1 validate, 3 test")
    (folder,) = (work / "runs" / ".prepared").iterdir()
    assert run_json(capsys, "inspect", "my.toml") == told
    run_json(capsys, "train", "my.toml", "--set", "train.max_steps=1")
    run = all_runs()[0]
    assert len(list((work / "runs" / ".prepared").iterdir())) == 1
    assert read_json(run.ledger)["sources"] == told["sources"]
    assert len(read_json(run.manifest)["data_sha256"]["train"]) == 2
    shutil.rmtree(folder)  # a run needs nothing of it
    run_json(capsys, "train", "my.toml", "--set", "train.max_steps=1", "--resume")
    with (work / "more.jsonl").open("a") as file:
        file.write('{"plain": "A wolf eats", "styled": "Eats a wolf, yes"}\n')
    assert run_json(capsys, "inspect", "my.toml")["sources"][1]["read"] == 19


def test_rows_that_do_not_fit_are_counted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (work / "rows.csv").open("a") as file:
        file.write(f"The long one,{'Sleeps and ' * 200}does\n")
    told = run_json(capsys, "inspect", "my.toml", "--set", "data.max_length=90")
    source = told["sources"][0]
    assert sum(source["dropped"].values()) <= 1
    assert source["used"] + sum(source["dropped"].values()) == source["read"]
    assert source["longest_row"] <= 90


def test_ask_chat_and_the_python_api_agree(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = retone.run("my.toml")
    assert result.run.status == "finished"
    asked = run_json(capsys, "ask", "latest", "The cat sleeps")
    assert set(asked) == {"answer", "tokens", "seconds"}
    assert retone.load("latest").answer("The cat sleeps") == asked["answer"]
    assert main(["ask", "latest", "The cat sleeps"]) == 0
    assert capsys.readouterr().out.strip() == asked["answer"].strip()
    base = run_json(capsys, "ask", "latest", "The cat sleeps", "--base")["answer"]

    typed = ["The cat sleeps", "/reset", "/base", "The cat sleeps", "/what", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    capsys.readouterr()
    assert main(["chat", "latest"]) == 0
    heard = capsys.readouterr()
    assert " ".join(asked["answer"].split()) in " ".join(heard.out.split())
    assert " ".join(base.split()) in " ".join(heard.out.split())
    assert "forgotten" in heard.err


def test_adapter_loads_in_plain_peft_with_the_same_answers(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract 6: a script without retone gives the same greedy answers."""
    result = run_json(capsys, "run", "my.toml", "--set", "model.dtype=float32")
    script = textwrap.dedent("""
        import json, sys
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer
        base, adapter = sys.argv[1:]
        tokenizer = AutoTokenizer.from_pretrained(adapter)  # with the template trained with
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter)
        answers = []
        for text in ("The cat sleeps", "The owl sleeps", "Hello there."):
            messages = [{"role": "system", "content": "Be Yoda."}]
            messages += [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            out = model.generate(**ids, max_new_tokens=6, do_sample=False)
            new = out[0, ids["input_ids"].shape[1]:]
            answers.append(tokenizer.decode(new, skip_special_tokens=True))
        assert "retone" not in sys.modules
        print(json.dumps(answers))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(work / "base"), f"{result['run']}/adapter"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = retone.load("latest")
    answers = [ours.answer(text) for text in ("The cat sleeps", "The owl sleeps", "Hello there.")]
    assert json.loads(done.stdout.splitlines()[-1]) == answers
    prompts = ("The cat sleeps", "The owl sleeps", "Hello there.")
    assert answers != [ours.ask(text, tuned=False).text for text in prompts]
    config = json.loads(Path(result["run"], "adapter", "adapter_config.json").read_text())
    assert str(Path.home()) not in config["base_model_name_or_path"]


def test_doctor_and_new(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "doctor", "--offline")
    assert told["machine"]["cores"] >= 1
    assert {check["name"] for check in told["checks"]} >= {"python", "device", "memory", "disk"}
    assert main(["new", "fresh.toml"]) == 0
    assert main(["new", "fresh.toml"]) == 2
    assert main(["inspect", "fresh.toml", "--model", str(work / "base")]) == 0


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys, retone.cli; retone.cli.main(['--help']);"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "retone run yoda" in done.stdout


def test_four_own_frames_to_backward(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cli.main -> run -> train -> fit -> backward."""
    from accelerate import Accelerator

    source = str(Path(retone.__file__).parent)
    seen: list[list[str]] = []
    real = Accelerator.backward

    def backward(self: Any, loss: Any, **kwargs: Any) -> None:
        frames, frame = [], sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(source):
                frames.append(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        seen.append(frames[::-1])
        real(self, loss, **kwargs)

    monkeypatch.setattr(Accelerator, "backward", backward)
    assert main(["run", "my.toml", "--set", "train.max_steps=1"]) == 0
    assert seen[0] == ["main", "run", "train", "fit"]
