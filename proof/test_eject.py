"""Ejected scripts in TRL's own environment: the same tokens, the same losses as the run's own.

The environment is the one of the benchmarks (benchmarks/peers/trl.txt), made once and kept. Every
method on a tiny random model, step by step; the recipe yoda on the default model for 30 steps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from record import record
from retone.data.preparing import PreparedData
from retone.run_dir import Run, read_json, read_jsonl
from retone.workflows.eject import IGNORED, eject

ROOT = Path(__file__).resolve().parents[1]
STEPS = 30
LAST = 5  # logged losses whose mean is the end loss
NEAR = 0.02  # of the run's own loss
EXACT = 1e-4  # of it, on the tiny models in float32: sums in another order, and nine steps on
LOGGED = ("loss", "eval_loss")
NOUNS = ("cat", "dog", "bird", "fish", "mouse", "horse", "goat", "sheep", "duck", "goose", "hen",
         "cow", "fox", "owl", "bee", "ant", "hare", "wolf")  # fmt: skip
RECIPE = """
[model]
name = "{base}"
dtype = "float32"
[data]
train = "rows.jsonl"
eval_fraction = 0.1
validation_fraction = 0.2
allow = ["leak"]
system = "Be brief."
deduplicate = "exact"
[train]
max_steps = 9
batch_size = 8
learning_rate = 1e-2
evaluate_every = 4
"""
KINDS: dict[str, tuple[str, ...]] = {
    "lora": ("data.train_on=last", "train.micro_batch_size=3"),
    "weights": ("method.plus_ratio=16", "train.weight_decay=0.1", "train.micro_batch_size=3"),
    "dora": ("method.dora=true", "train.schedule=cosine", "train.gradient_checkpointing=true"),
    "pissa": ("method.init=pissa", "objective.label_smoothing=0.1"),
    "full": ("method.kind=full", "train.weight_decay=0.1", "train.schedule=wsd"),
    "last_layers": ("method.kind=last_layers", "method.layers=1", "data.train_on=last"),
    "ia3": ("method.kind=ia3", "data.train_on=last", "train.optimizer=adafactor"),
    "prefix": ("method.kind=prefix", "data.train_on=last"),
    "prompt": ("method.kind=prompt", "data.train_on=last"),
    "texts": ("data.train=texts.jsonl", "method.rslora=true", "train.schedule=constant"),
}
# `python train.py`, and before it what the loader gives: ids and labels of every micro-batch.
TRAIN = """
import json, runpy
trainer = runpy.run_path("train.py", run_name="ejected")["make_trainer"]()
batches = []
for batch in trainer.get_train_dataloader():
    real = batch["attention_mask"].bool()
    names = ("input_ids", "labels")
    batches.append([[row[m].tolist() for row, m in zip(batch[name], real)] for name in names])
trainer.train()
trainer.save_model()
trainer.save_state()
print("\\n" + json.dumps(batches))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs TRL's interpreter in a folder; stdout."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from peers.candidates import TRL

    interpreter = TRL.python(tmp_path_factory.mktemp("pip") / "log.txt")

    def call(folder: Path, *arguments: str, base: Path | None = None) -> str:
        given = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        given |= {"BASE": str(base)} if base else {}
        done = subprocess.run(
            [str(interpreter), *arguments], cwd=folder, env={**os.environ, **given},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return call


def trained(folder: Path, *arguments: str) -> Run:
    """`retone train` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "retone", "train", *arguments, "--json"],
        cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return Run(folder / json.loads(done.stdout)["run"])


def losses(run: Run, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Logged training and evaluation losses of the run and of the script, in their order."""
    logs = {"retone": read_jsonl(run.metrics)}
    logs["trl"] = read_json(folder / "tuned" / "trainer_state.json")["log_history"]
    return {
        who: {
            name: [line[name] for line in lines if name in line] for name in ("loss", "eval_loss")
        }
        for who, lines in logs.items()
    }


def assert_same_tokens(run: Run, batches: list[list[list[list[int]]]]) -> int:
    """Every micro-batch holds rows of the run with its labels; the number of trained tokens."""
    rows = PreparedData(run.data).rows("train")
    expected = {
        row.input_ids: [
            token if weight else IGNORED
            for token, weight in zip(row.input_ids, row.loss_weights, strict=True)
        ]
        for row in rows
    }
    count = 0
    for ids, labels in batches:
        for row, found in zip(ids, labels, strict=True):
            assert found == expected[tuple(row)]
            count += sum(label != IGNORED for label in found)
    return count


def rows() -> dict[str, list[dict[str, Any]]]:
    """Conversations of two turns, some of whose turns and parts have weights, and plain texts."""
    chats: list[dict[str, Any]] = []
    for number, noun in enumerate(NOUNS * 2):
        answer: dict[str, Any] = {"role": "assistant", "content": f"Sleeps the {noun} does."}
        if number % 4 == 1:
            answer["weight"] = 0
        if number % 4 == 2:
            parts = ((f"The {noun}: ", 0.5), ("asleep.", 1.0))
            answer["content"] = [
                {"type": "text", "text": text, "loss_weight": weight} for text, weight in parts
            ]
        more = f"And number {number}, " + "really " * (number % 7) + "now?"
        said = [("user", f"What does the {noun} do?"), ("user", more)]
        ask, again = ({"role": role, "content": text} for role, text in said)
        last = {"role": "assistant", "content": f"It sleeps on {number} pianos."}
        chats.append({"messages": [ask, answer, again, last]})
    texts = [{"text": f"The {noun} slept. " * (2 + at % 5)} for at, noun in enumerate(NOUNS)]
    return {"rows": chats, "texts": texts}


@pytest.mark.timeout(1200)
def test_every_method(tmp_path: Path, python: Callable[..., str]) -> None:
    base = tiny.folder(tmp_path / "base", initializer_range=0.3)
    (tmp_path / "my.toml").write_text(RECIPE.format(base=base))
    for name, given in rows().items():
        lines = "".join(json.dumps(row) + "\n" for row in given)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    found: dict[str, Any] = {}
    for kind, sets in KINDS.items():
        flags = [part for item in sets for part in ("--set", item)]
        run = trained(tmp_path, "my.toml", "--name", kind, *flags)
        folder = tmp_path / f"{kind}-trl"
        eject(str(run.path), output=folder, offline=True)
        batches = json.loads(python(folder, "-c", TRAIN, base=base).strip().rpartition("\n")[2])
        tokens = assert_same_tokens(run, batches)
        both = losses(run, folder)
        found[kind] = {"trained_tokens": tokens, **compared(both)}
        assert len(both["trl"]["loss"]) == len(both["retone"]["loss"]) == 9
        assert found[kind]["largest_difference"] < EXACT, (kind, both)
        assert found[kind]["eval_difference"] < EXACT, (kind, both)
    record("eject_methods", {"kinds": found, "exact": EXACT})


def compared(both: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Relative differences: the largest of all steps, of the end, of the last evaluation."""
    ours, theirs = both["retone"], both["trl"]
    pairs = zip(ours["loss"], theirs["loss"], strict=True)
    end, their_end = (statistics.mean(each["loss"][-LAST:]) for each in (ours, theirs))
    last, their_last = ours["eval_loss"][-1], theirs["eval_loss"][-1]
    return {
        "largest_difference": max(abs(a - b) / a for a, b in pairs),
        "end_difference": abs(end - their_end) / end,
        "eval_difference": abs(last - their_last) / last,
    }


@pytest.mark.timeout(1200)
def test_yoda(tmp_path: Path, python: Callable[..., str]) -> None:
    started = time.monotonic()
    run = trained(tmp_path, "yoda", "--set", f"train.max_steps={STEPS}")
    seconds = {"retone": time.monotonic() - started}
    folder = tmp_path / "yoda-trl"
    result = eject(str(run.path), output=folder, offline=True)
    started = time.monotonic()
    python(folder, "train.py", base=result.base)
    seconds["trl"] = time.monotonic() - started
    both = losses(run, folder)
    differences = compared(both)
    versions = json.loads(
        python(folder, "-c", "import json, importlib.metadata as m; print(json.dumps("
               "{n: m.version(n) for n in ('trl', 'torch', 'transformers', 'peft', 'datasets')}))")
    )  # fmt: skip
    model = read_json(run.resolved)["recipe"]["model"]
    record(
        "eject",
        {
            "recipe": "yoda", "steps": STEPS, "end_of": LAST, "near": NEAR,
            "dtype": model["dtype"], "attention": model["attention"], "losses": both,
            **differences, "seconds": seconds, "trl_versions": versions,
            "script_lines": len((folder / "train.py").read_text().splitlines()),
            "left_out": result.left_out,
        },
    )  # fmt: skip
    assert len(both["trl"]["loss"]) == len(both["retone"]["loss"]) == STEPS
    assert both["retone"]["loss"][-1] < 0.9 * both["retone"]["loss"][0]
    assert differences["end_difference"] < NEAR
    assert differences["eval_difference"] < NEAR
