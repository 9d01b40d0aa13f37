"""The ejected script, without TRL: the rows, their order, the rates, the model that it begins with.

proof/test_eject.py runs it with TRL.
"""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
import types
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from retone.data.batching import collate
from retone.data.preparing import PreparedData
from retone.errors import InputError
from retone.models.methods import METHODS
from retone.planning import Resolved
from retone.recipe_file import load_recipe
from retone.run_dir import Run, read_json, read_jsonl
from retone.training.loop import _step_rows
from retone.training.losses import LOSSES
from retone.training.optim import make_optimizer, rate_at
from retone.workflows.create import create
from retone.workflows.eject import Ejected, eject
from retone.workflows.load import open_run

RECIPE = """
[model]
name = "{base}"
dtype = "float32"
[data]
train = "train.jsonl"
test = "test.jsonl"
system = "Be brief."
allow = ["warmup-too-long"]
deduplicate = "exact"
validation_fraction = 0.2
[train]
max_steps = 7
batch_size = 8
learning_rate = 1e-2
evaluate_every = 3
"""
NOUNS = ("cat", "dog", "bird", "fish", "mouse", "horse", "goat", "sheep", "duck", "goose", "hen",
         "cow", "fox", "owl", "bee", "ant")  # fmt: skip
METHOD_SETS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "lora+": ("method.plus_ratio=16", "train.weight_decay=0.1", "method.rank=1"),
    "dora": ("method.dora=true", "method.rslora=true", "method.dropout=0.1"),
    "modules": ('method.train_also=["norm"]', 'method.targets=["q_proj"]', "method.bias=all"),
    "olora": ("method.init=olora", 'method.targets=["q_proj", "lm_head"]'),
    "bf16": ("model.dtype=bfloat16", "model.attention=sdpa"),
    "full": ("method.kind=full", "train.weight_decay=0.1", "train.schedule=cosine"),
    "last_layers": ("method.kind=last_layers", "method.layers=1", "model.dtype=bfloat16"),
    "ia3": ("method.kind=ia3", "train.schedule=constant"),
    "prefix": ("method.kind=prefix", "train.schedule=wsd"),
    "prompt": ("method.kind=prompt", "train.optimizer=adafactor"),
    "8bit": ("train.optimizer=adamw_8bit", "train.gradient_checkpointing=true"),
    "nf4": ("model.quantization=nf4",),
    "noise": ("train.neftune_alpha=5", "objective.label_smoothing=0.1"),
}


def conversations() -> list[dict[str, Any]]:
    """Two turns each, of many lengths; in some a turn or a part of one has a weight of its own."""
    rows = []
    for number, noun in enumerate(NOUNS * 2):
        answer: dict[str, Any] = {"role": "assistant", "content": f"Sleeps the {noun} does."}
        if number % 4 == 1:
            answer["weight"] = 0
        if number % 4 == 2:
            answer["content"] = [
                {"type": "text", "text": f"The {noun}: ", "loss_weight": 0.5},
                {"type": "text", "text": "asleep."},
            ]
        more = f"And number {number}, " + "really " * (number % 7) + "now?"
        rows.append(
            {"messages": [
                {"role": "user", "content": f"What does the {noun} do?"}, answer,
                {"role": "user", "content": more},
                {"role": "assistant", "content": f"It sleeps on {number} pianos."},
            ]}
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eject")
    base = tiny.folder(folder / "base")
    lines = [json.dumps(row) + "\n" for row in conversations()]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "test.jsonl").write_text('{"prompt": "Where is the yak?", "completion": "Away."}\n')
    pairs = [f'{{"prompt": "The {noun}?", "completion": "A {noun}."}}\n' for noun in NOUNS]
    (folder / "pairs.jsonl").write_text("".join(pairs))
    texts = [json.dumps({"text": f"The {noun} slept. " * (2 + i)}) for i, noun in enumerate(NOUNS)]
    (folder / "texts.jsonl").write_text("\n".join(texts) + "\n")
    recipe = RECIPE.format(base=base)
    (folder / "my.toml").write_text(recipe)
    (folder / "clock.toml").write_text(recipe.replace("max_steps = 7", "minutes = 1"))
    texts_alone = recipe.replace('test = "test.jsonl"\n', "").replace("train.jsonl", "texts.jsonl")
    (folder / "texts.toml").write_text(texts_alone)
    return folder


@pytest.fixture
def work(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data)
    monkeypatch.setenv("RETONE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def made(*sets: str, recipe: str = "my.toml") -> Run:
    """A run that was prepared and not trained."""
    return create(load_recipe(recipe, sets=sets), name="my", offline=True)


def ejected(work: Path, *sets: str, recipe: str = "my.toml") -> tuple[Run, Path]:
    run = made(*sets, recipe=recipe)
    eject("my", output=work / "out", offline=True)
    return run, work / "out"


def script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What train.py defines, with stand-ins for TRL and datasets."""
    trl, datasets = types.ModuleType("trl"), types.ModuleType("datasets")
    trl.SFTTrainer, trl.SFTConfig = type("SFTTrainer", (), {}), dict  # type: ignore[attr-defined]
    datasets.Dataset = types.SimpleNamespace(from_list=list)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trl", trl)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setenv("BASE", str(tiny_base()))
    return runpy.run_path(str(folder / "train.py"), run_name="ejected")


def tiny_base() -> Path:
    """Of the runs here, which are made in the folder of the data."""
    return Path("base").resolve()


def test_a_folder_that_is_given_away_names_no_place_of_this_machine(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made()
    found = eject("my", output=work / "out", offline=True)
    place = str(tiny_base())
    assert [file for file in (work / "out").iterdir() if place in file.read_text()] == []
    assert script(work / "out", monkeypatch)["BASE"] == place
    monkeypatch.delenv("BASE")
    assert runpy.run_path(str(work / "out" / "train.py"), run_name="ejected")["BASE"] == "base"
    found.show()
    assert f"BASE={place} python train.py" in " ".join(capsys.readouterr().out.split())
    assert found.as_json()["base"] == place


def resolved(run: Run) -> Resolved:
    return Resolved.from_json(read_json(run.resolved))


@pytest.mark.parametrize("sets", [(), ("data.train_on=last",), ("data.train_on=everything",)])
def test_the_script_trains_the_tokens_of_the_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...]
) -> None:
    run, folder = ejected(work, *sets)
    for split in ("train", "validation"):
        rows = list(PreparedData(run.data).rows(split))
        defined = script(folder, monkeypatch)
        assert len(rows) > 2
        weighted = "weights" in read_jsonl(folder / f"{split}.jsonl")[0]
        assert weighted == (sets == ())
        given = defined["dataset"](f"{split}.jsonl")
        assert [tuple(row["input_ids"]) for row in given] == [row.input_ids for row in rows]
        for row, ours in zip(given, rows, strict=True):
            weights = (
                row["weights"] if weighted else [float(each != -100) for each in row["labels"]]
            )
            assert tuple(weights) == ours.loss_weights
            trained = [label for label in row["labels"] if label != -100]
            pairs = zip(ours.input_ids, ours.loss_weights, strict=True)
            assert trained == [token for token, weight in pairs if weight]
            assert trained[-1] == 2 or "everything" in "".join(
                sets
            )  # the token that ends an answer
    first = read_jsonl(folder / "train.jsonl")[0]
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}


def test_texts_are_trained_whole(work: Path) -> None:
    run, folder = ejected(work, recipe="texts.toml")
    for row in read_jsonl(folder / "train.jsonl"):
        assert row["text"].startswith("The ")
        assert row["labels"][1:] == row["input_ids"][1:]
    assert "| `train.jsonl` |" in (folder / "README.md").read_text()
    assert resolved(run).recipe.objective.kind == "text"


def test_every_step_takes_the_rows_of_fit(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = ejected(work, "train.max_steps=11", "train.micro_batch_size=3")
    train, rows = resolved(run).recipe.train, PreparedData(run.data).rows("train")
    order = _step_rows(rows, train, 0)
    steps = read_jsonl(folder / "steps.jsonl")
    assert steps == [next(order)[1] for _ in range(11)]
    assert {len(step) for step in steps} == {8, len(rows) % 8}
    defined = script(folder, monkeypatch)
    trainer = defined["InOrder"]()
    trainer.train_dataset, trainer.data_collator = list(range(len(rows))), list
    passes = list(trainer.get_train_dataloader())
    assert defined["PASSES"] == min(3, len(rows) % 8)
    assert len(passes) == 11 * defined["PASSES"]
    per_step = [
        passes[at : at + defined["PASSES"]] for at in range(0, len(passes), defined["PASSES"])
    ]
    assert [sorted(chain.from_iterable(parts)) for parts in per_step] == [
        sorted(step) for step in steps
    ]


def test_a_step_with_too_few_rows_is_told(work: Path) -> None:
    sets = ("train.batch_size=31", "train.micro_batch_size=8", "train.micro_batch_tokens=9999")
    run = made("data.validation_fraction=0", *sets)
    rows = len(PreparedData(run.data).rows("train"))
    assert rows % 31 == 1
    told = eject("my", output=work / "out").left_out
    assert any("a step has too few rows for 4 micro-batches" in sentence for sentence in told)
    assert "PASSES = 1 " in (work / "out" / "train.py").read_text()
    assert not (work / "out" / "validation.jsonl").exists()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 3, 7])
def test_rates_are_those_of_the_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, warmup: int
) -> None:
    run, folder = ejected(work, f"train.schedule={schedule}", f"train.warmup_steps={warmup}")
    train, share = resolved(run).recipe.train, script(folder, monkeypatch)["share_of_peak"]
    for step in range(7):
        ours = rate_at(step, step / 7, train, warmup / 7)
        assert 1e-2 * share(step) == pytest.approx(ours, rel=1e-12)


@pytest.mark.parametrize("name", METHOD_SETS)
def test_model_and_optimizer_begin_as_in_the_run(
    name: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = ejected(work, *METHOD_SETS[name])
    recipe, defined = resolved(run).recipe, script(folder, monkeypatch)
    torch.manual_seed(recipe.train.seed)
    model = METHODS[recipe.method.kind].prepare(open_run(run).load_base_model(), recipe.method)
    theirs = defined["make_model"]()
    ours = dict(model.named_parameters())
    assert {n: p.requires_grad for n, p in theirs.named_parameters()} == {
        n: p.requires_grad for n, p in ours.items()
    }
    for key, parameter in theirs.named_parameters():
        assert parameter.dtype == ours[key].dtype, key
        assert torch.equal(parameter, ours[key]), key

    def settings(optimizer: Any, of: Any) -> dict[str, tuple[float, float]]:
        names = {id(parameter): key for key, parameter in of.named_parameters()}
        return {
            names[id(parameter)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    made_here = make_optimizer(model, recipe.train, plus_ratio=recipe.method.plus_ratio)
    made_there = defined["make_optimizer"](theirs)
    assert type(made_there) is type(made_here)
    assert settings(made_there, theirs) == settings(made_here, model)


def test_weights_and_smoothing_enter_the_loss(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = ejected(work, "objective.label_smoothing=0.1")
    defined, model = script(folder, monkeypatch), tiny.model()
    rows = list(PreparedData(run.data).rows("train"))[:6]
    batch = defined["collate"](defined["dataset"]("train.jsonl")[:6])
    ours = collate(rows, 0)
    assert torch.equal(batch["weights"], ours.loss_weights)
    assert torch.equal(batch["attention_mask"], ours.attention_mask)
    for training, smoothing in ((True, 0.1), (False, 0.0)):
        model.train(training)
        total, weight = LOSSES["sft"](model, ours, fast=False, smoothing=smoothing)
        trainer = types.SimpleNamespace(tokens_a_row=2 * weight / len(rows))
        given = weight if training else None
        found = defined["InOrder"].compute_loss(trainer, model, batch, num_items_in_batch=given)
        # An evaluation's batch is divided by its rows' share of the tokens of all, here the double.
        torch.testing.assert_close(found, total / weight / (1 if training else 2))


@pytest.mark.parametrize("name", METHOD_SETS)
def test_the_script_is_clean_and_plain(name: str, work: Path) -> None:
    weights = () if name in ("lora", "noise") else ("data.train=pairs.jsonl",)
    _, folder = ejected(work, *METHOD_SETS[name], *weights)
    text = (folder / "train.py").read_text()
    for check in (["check", "--select=E,F,I,UP,SIM", "--ignore=E501"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--isolated", "--config=line-length=100"]
        done = subprocess.run([*command, str(folder / "train.py")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert len(text.splitlines()) < 200
    nodes = ast.walk(ast.parse(text))
    imports = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    packages = {name.partition(".")[0] for name in imports}
    allowed = {"json", "math", "os", "pathlib", "torch", "transformers", "trl", "peft", "datasets"}
    assert packages - allowed == ({"bitsandbytes"} if name == "8bit" else set())
    bits = "bitsandbytes" in (folder / "requirements.txt").read_text()
    assert bits == (name in ("8bit", "nf4"))


def test_what_is_written_and_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made()
    result = eject("my", output=work / "new" / "out", offline=True)
    folder = work / "new" / "out"
    expected = ["README.md", "chat_template.jinja", "requirements.txt", "steps.jsonl",
                "train.jsonl", "train.py", "validation.jsonl"]  # fmt: skip
    assert result.as_json() == {
        "path": str(folder), "files": expected, "left_out": result.left_out,
        "base": str(tiny_base()),
    }  # fmt: skip
    assert sorted(file.name for file in folder.iterdir()) == expected
    assert (folder / "chat_template.jinja").read_text() == tiny.CHATML
    readme = (folder / "README.md").read_text()
    assert all(f"- {sentence}\n" in readme for sentence in result.left_out)
    assert read_json(run.manifest)["base"]["sha256"] in readme
    pins = (folder / "requirements.txt").read_text().splitlines()
    versions = read_json(run.manifest)["versions"]
    assert f"transformers=={versions['transformers']}" in pins
    assert not any("+" in pin for pin in pins)
    result.show()
    assert "train.py" in capsys.readouterr().out
    with pytest.raises(InputError, match="there already"):
        eject("my", output=folder)


REFUSED = {
    "method.kind=unfreeze": "opens layers",
    "method.kind=bottleneck": "no such adapters",
    "train.optimizer=muon": "two optimizers",
    "model.dtype=float16": "norms in float32",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_trl_cannot_do_is_refused(setting: str, work: Path) -> None:
    made(setting)
    with pytest.raises(InputError) as refused:
        eject("my", output=work / "out")
    assert REFUSED[setting] in refused.value.found
    assert refused.value.remedy.startswith("eject a run made with --set ")
    assert not (work / "out").exists()


def test_everything_that_is_refused_is_named_at_once(work: Path) -> None:
    run = made("train.optimizer=muon", recipe="clock.toml")
    with pytest.raises(InputError) as refused:
        eject("my", output=work / "out")
    assert "muon" in refused.value.found
    assert "train.minutes" in refused.value.found
    run.training.write_text('{"steps": 5}')
    with pytest.raises(InputError) as refused:
        eject("my", output=work / "out")
    assert "train.minutes" not in refused.value.found


def test_a_run_that_ended_by_the_clock_has_the_steps_that_it_did(work: Path) -> None:
    run = made(recipe="clock.toml")
    run.training.write_text('{"steps": 5}')
    found = eject("my", output=work / "out")
    assert isinstance(found, Ejected)
    assert len(read_jsonl(work / "out" / "steps.jsonl")) == 5
    assert "WARMUP = 1 " in (work / "out" / "train.py").read_text()  # a share of them
    assert any("the 5 steps that the run did" in sentence for sentence in found.left_out)


def test_tokens_that_the_base_lacks_are_refused(work: Path, data: Path) -> None:
    base = tiny.folder(work / "small", vocab_size=300)
    made(f"model.name={base}")
    with pytest.raises(InputError, match="embeddings are added"):
        eject("my", output=work / "out")
