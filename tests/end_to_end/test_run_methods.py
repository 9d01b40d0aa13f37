"""Every kind of method from the command line: run, ask, go on from what another run learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_commands import NOUNS, RECIPE, run_json
from transformers import AutoModelForCausalLM

import tiny
from retone.cli import main
from retone.run_dir import Run, read_json, read_jsonl

KINDS = {
    "lora": (),
    "pissa": ("method.init=pissa",),
    "dora": ("method.dora=true", "method.plus_ratio=16"),
    "full": ("method.kind=full",),
    "last_layers": ("method.kind=last_layers", "method.layers=1"),
    "unfreeze": ("method.kind=unfreeze", "method.layers=1"),
    "ia3": ("method.kind=ia3",),
    "prefix": ("method.kind=prefix",),
    "prompt": ("method.kind=prompt",),
    "bottleneck": ("method.kind=bottleneck", "method.placement=houlsby"),
    "nf4": ("model.quantization=nf4", "train.optimizer=paged_adamw_8bit"),
    "int8": ("model.quantization=int8", "train.optimizer=adamw_8bit"),
    "muon": ("train.optimizer=muon", "train.gradient_checkpointing=true"),
    "noise": ("train.neftune_alpha=5", "objective.label_smoothing=0.1", "train.schedule=wsd"),
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = tiny.folder(tmp_path / "base")
    text = RECIPE.format(base=base).replace("rank = 4\n", "")
    (tmp_path / "my.toml").write_text(text.replace("epochs = 3", "epochs = 1"))
    rows = [f"The {noun} sleeps,Sleeps the {noun} does" for noun in NOUNS]
    (tmp_path / "rows.csv").write_text("plain,styled\n" + "\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def base_perplexity() -> dict[str, float]:
    """Filled by the first method: what the base scores must not depend on the method."""
    return {}


def sets(*given: str) -> list[str]:
    return [part for item in given for part in ("--set", item)]


@pytest.mark.parametrize("name", KINDS)
def test_a_method_runs_and_answers(
    name: str, work: Path, capsys: pytest.CaptureFixture[str], base_perplexity: dict[str, float]
) -> None:
    result = run_json(capsys, "run", "my.toml", *sets(*KINDS[name]))
    run = Run(Path(result["run"]))
    assert result["scores"]["tuned"]["perplexity"]["value"] > 0
    # The base is asked without what was trained: it is the same under every method.
    untuned = result["scores"]["base"]["perplexity"]["value"]
    rounding = {"nf4": 0.05, "int8": 0.01}.get(name, 1e-4)
    assert untuned == pytest.approx(base_perplexity.setdefault("all", untuned), rel=rounding)
    answer = run_json(capsys, "ask", run.name, "The cow sleeps")
    assert answer["tokens"] > 0
    training = read_json(run.training)
    assert 0 < training["parameters"]["trained"] <= training["parameters"]["total"]
    whole = KINDS[name][:1] in {("method.kind=full",), ("method.kind=last_layers",)}
    assert run.tuned == (run.model if whole or name == "unfreeze" else run.adapter)
    assert (run.tuned / "base_model.json").is_file()
    if name == "nf4":
        assert read_json(run.resolved)["recipe"]["train"]["optimizer"] == "adamw_8bit"


@pytest.mark.parametrize(
    "given",
    [
        ("method.kind=full", "model.dtype=float16"),
        ("method.kind=unfreeze", "method.layers=1", "model.dtype=bfloat16"),
        ('method.train_also=["norm"]', "model.dtype=bfloat16"),
    ],
)
def test_answers_in_the_middle_of_training_are_in_its_precision(
    given: tuple[str, ...], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained weights lie in float32 among others in half precision."""
    result = run_json(capsys, "run", "my.toml", *sets(*given, "train.sample_answers=1"))
    assert read_jsonl(Run(Path(result["run"])).samples)


@pytest.mark.parametrize("use", ["merged", "stacked"])
def test_training_goes_on_from_another_run(
    use: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Run(Path(run_json(capsys, "run", "my.toml", "--name", "first")["run"]))
    # At a rate of next to nothing the second run is to say what the first one learned.
    more = ("model.adapter=first", f"model.adapter_use={use}", "method.rank=4",
            "train.learning_rate=1e-12", "model.dtype=float32")  # fmt: skip
    second = Run(Path(run_json(capsys, "run", "my.toml", *sets(*more))["run"]))
    manifest = read_json(second.manifest)
    assert manifest["parent"]["folder"].endswith("first/adapter")
    config = json.loads((second.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (12, 12)
    shutil.rmtree(first.path)  # the second run holds what it needs of the first
    assert run_json(capsys, "ask", second.name, "The cow sleeps")["tokens"] > 0
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(work / "base"), second.adapter
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        tuned = plain(input_ids=ids).logits
        with plain.disable_adapter():
            untuned = plain(input_ids=ids).logits
        older = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(work / "base"), second.parent
        )(input_ids=ids).logits
    assert (older - untuned).abs().max() > 0.001
    torch.testing.assert_close(tuned, older, rtol=1e-5, atol=1e-5)


def test_another_base_and_another_method_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "run", "my.toml", "--name", "first")
    tiny.folder(work / "other", seed=1)
    on_other = ["run", "my.toml", "--model", str(work / "other"), *sets("model.adapter=first")]
    assert main([*on_other, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "other-base"
    run_json(capsys, "run", "my.toml", "--name", "scales", *sets("method.kind=ia3"))
    capsys.readouterr()
    assert main(["run", "my.toml", *sets("model.adapter=scales"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not-plain-lora"
    assert "IA3" in error["found"]
    assert main(["run", "my.toml", *sets("model.adapter=nothing"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unknown-run"


def test_adapters_of_other_tools_that_would_be_misread_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "run", "my.toml", "--name", "first")
    adapter = Run(work / "runs" / "first").adapter
    foreign = work / "foreign"
    shutil.copytree(adapter, foreign)
    (foreign / "base_model.json").unlink()  # so other tools write it
    tiny.folder(work / "wider", hidden_size=64)
    asked = ["run", "my.toml", *sets("model.adapter=foreign"), "--json"]
    capsys.readouterr()
    assert main([*asked, "--model", str(work / "wider")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "adapter-misfit"
    config = {**read_json(foreign / "adapter_config.json"), "init_lora_weights": "pissa"}
    (foreign / "adapter_config.json").write_text(json.dumps(config))
    assert main(asked) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unusable-adapter"
    assert main(["run", "my.toml", *sets("model.adapter=gone"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unknown-run"
