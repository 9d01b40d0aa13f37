"""Every method on a tiny model: loss and gradients, saving, reloading, merging, resuming."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from retone.batch import EncodedRow
from retone.config import MethodSection, ObjectiveSection, TrainSection
from retone.data.batching import collate
from retone.errors import InputError
from retone.models.adapters import add_to_weights, initial_part, own_part
from retone.models.loading import load_base
from retone.models.locate import LocatedModel
from retone.models.methods import METHODS, Parameters, count_parameters
from retone.models.saving import add_older, load_tuned, save_tuned
from retone.training.kernels import fused_lora
from retone.training.loop import FitData, fit
from retone.training.losses import next_token

CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora on names": {"targets": ["q_proj", "v_proj"], "rank": 4, "alpha": 4.0},
    "lora by regex": {"targets": r".*\.mlp\.(up|down)_proj"},
    "lora with biases": {"bias": "lora_only"},
    "lora and a whole module": {"train_also": ["norm"]},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "lora+": {"plus_ratio": 16.0},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "full": {"kind": "full"},
    "last_layers": {"kind": "last_layers", "layers": 1},
    "unfreeze": {"kind": "unfreeze", "layers": 1},
    "ia3": {"kind": "ia3"},
    "lora on a tied head": {"targets": ["q_proj", "lm_head"]},
    "pissa on a tied head": {"targets": ["q_proj", "lm_head"], "init": "pissa"},
    "olora on a tied head": {"targets": ["q_proj", "lm_head"], "init": "olora"},
    "prefix": {"kind": "prefix", "virtual_tokens": 5},
    "prompt": {"kind": "prompt", "virtual_tokens": 5},
    "bottleneck pfeiffer": {"kind": "bottleneck", "reduction": 4},
    "bottleneck houlsby": {"kind": "bottleneck", "reduction": 4, "placement": "houlsby"},
}
QUANTIZED = {"nf4": "nf4", "int8": "int8"}  # the bases under plain LoRA
STEPS = 4
ROWS = 25  # in steps of 8: the last has one row, which one of two processes gets


def method(name: str) -> MethodSection:
    return tiny.method(**CASES.get(name, {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model with biases, whose logits are not nearly equal."""
    path = tmp_path_factory.mktemp("base")
    model = tiny.model(initializer_range=0.2, attention_bias=True)
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def located(folder: Path) -> LocatedModel:
    return LocatedModel("tiny", folder, "folder", "", None, None, "0" * 64, None, 512)


def loaded(folder: Path, quantization: str = "none") -> Any:
    return load_base(
        folder, dtype="float32", attention="eager", device="cpu", quantization=quantization
    )


def prepared(name: str, folder: Path) -> Any:
    """The tiny model under a method, with every trained number moved off its start."""
    torch.manual_seed(3)
    kind = method(name)
    model = METHODS[kind.kind].prepare(loaded(folder, QUANTIZED.get(name, "none")), kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def plain_loss(model: Any, rows: list[EncodedRow]) -> torch.Tensor:
    """The mean loss of rows one by one, written out once more: nothing here is shared with src."""
    total, weight = torch.zeros(()), 0.0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        spoken = torch.log_softmax(logits[-len(row.input_ids) :], dim=-1)
        for place, (token, counts) in enumerate(zip(row.input_ids, row.loss_weights, strict=True)):
            if counts:
                total = total - counts * spoken[place - 1, token]
                weight += counts
    return total / weight


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", [*CASES, *QUANTIZED])
def test_loss_and_gradients_are_those_of_plain_autograd(name: str, folder: Path) -> None:
    model = prepared(name, folder).train()
    rows = tiny.rows(6)
    expected = plain_loss(model, rows)
    expected.backward()
    plain = gradients(model)
    assert plain.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    tolerance = {"int8": 2e-2}.get(name, 1e-4)  # int8 rounds activations by the rows beside them
    for fast in (True, False):
        with fused_lora(model):
            loss, weight = next_token(model, collate(rows, pad_id=0), fast=fast)
        (loss / weight).backward()
        torch.testing.assert_close(loss / weight, expected, rtol=tolerance / 10, atol=0)
        for key, gradient in gradients(model).items():
            scale = float(plain[key].abs().max())
            torch.testing.assert_close(gradient, plain[key], rtol=tolerance, atol=tolerance * scale)


def test_only_what_the_method_names_is_trained(folder: Path) -> None:
    def trained(name: str) -> set[str]:
        model = prepared(name, folder)
        return {key for key, p in model.named_parameters() if p.requires_grad}

    assert {key.rpartition(".layers.")[0] for key in trained("lora on names")} == {
        "base_model.model.model"
    }
    assert all(".q_proj." in key or ".v_proj." in key for key in trained("lora on names"))
    assert all(".up_proj." in key or ".down_proj." in key for key in trained("lora by regex"))
    assert any(key.endswith("q_proj.base_layer.bias") for key in trained("lora with biases"))
    assert any("modules_to_save" in key for key in trained("lora and a whole module"))
    last = trained("last_layers")
    assert {"model.norm.weight", "lm_head.weight"} < last
    assert all(key.startswith(("model.layers.1.", "model.norm", "lm_head")) for key in last)
    assert trained("full") == trained("unfreeze")
    places = {key.split(".bottleneck_")[0] for key in trained("bottleneck houlsby")}
    assert places == {
        f"model.layers.{n}.{at}" for n in (0, 1) for at in ("mlp", "self_attn.o_proj")
    }


def test_parameters_are_counted(folder: Path) -> None:
    hidden, layers, feed_forward, kv, vocabulary = 32, 2, 64, 16, 320
    shapes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    shapes += [(hidden, feed_forward), (hidden, feed_forward), (feed_forward, hidden)]
    base = count_parameters(loaded(folder)).total
    counts = {name: count_parameters(prepared(name, folder)) for name in [*CASES, *QUANTIZED]}
    lora = 8 * layers * sum(one + other for one, other in shapes)
    assert counts["lora"] == Parameters(lora, base + lora)
    assert counts["nf4"] == counts["int8"] == counts["lora"]
    assert counts["full"] == counts["unfreeze"] == Parameters(base, base)
    assert counts["prompt"].trained == 5 * hidden
    assert counts["prefix"].trained == 5 * layers * 2 * kv
    assert counts["ia3"].trained == layers * (2 * kv + feed_forward)
    small = (hidden // 4) * hidden * 2 + hidden // 4 + hidden
    assert counts["bottleneck pfeiffer"].trained == layers * small
    assert counts["bottleneck houlsby"].trained == 2 * layers * small
    untied = counts["last_layers"]
    assert untied.total == base + vocabulary * hidden
    assert "parameters are trained (" in str(untied)


def saved(name: str, model: Any, folder: Path, out: Path) -> Path:
    out.mkdir()
    save_tuned(
        model, method(name), located(folder), out, dtype="float32",
        tokenizer=tiny.tokenizer(), template=tiny.CHATML, parts=(),
    )  # fmt: skip
    return out


def logits(model: Any) -> torch.Tensor:
    """[1, 12, vocabulary] of fixed tokens, learned positions before them left out."""
    ids = torch.arange(20, 32).unsqueeze(0)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits[:, -12:]
    return found


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("name", [n for n in (*CASES, *QUANTIZED) if method(n).init == "zero"])
def test_saved_and_reloaded_gives_equal_logits(name: str, folder: Path, tmp_path: Path) -> None:
    base = partial(loaded, quantization=QUANTIZED.get(name, "none"))
    model = prepared(name, folder)
    expected, untuned = logits(model), logits(base(folder))
    assert (expected - untuned).abs().max() > 0.01
    out = saved(name, model, folder, tmp_path / "tuned")
    assert "<|im_start|>" in (out / "chat_template.jinja").read_text()
    again = load_tuned(out, located(folder), base)
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    with again.disable_adapter():
        torch.testing.assert_close(logits(again), untuned, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    saved_as = METHODS[method(name).kind].saved_as
    if name in QUANTIZED:
        plain = PeftModel.from_pretrained(base(folder), out)
    elif saved_as == "adapter":
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), out)
    elif saved_as == "model":
        plain = AutoModelForCausalLM.from_pretrained(out)
    else:
        return  # only retone reads them
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [n for n in CASES if METHODS[method(n).kind].merges and method(n).init == "zero"],
)
def test_merged_gives_equal_logits(name: str, folder: Path, tmp_path: Path) -> None:
    model = prepared(name, folder)
    expected = logits(model)
    merged = add_to_weights(loaded(folder), saved(name, model, folder, tmp_path / "tuned"))
    assert type(merged) is type(loaded(folder))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("name", [n for n in CASES if method(n).init != "zero"])
def test_variants_that_move_the_base_are_saved_as_plain_lora(
    name: str, folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model = METHODS["lora"].prepare(loaded(folder), method(name))
    parts = initial_part(model, method(name))
    untuned = logits(loaded(folder))
    torch.testing.assert_close(logits(model), untuned, rtol=1e-4, atol=1e-4)  # nothing learned yet
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    out = tmp_path / "tuned"
    out.mkdir()
    save_tuned(
        model, method(name), located(folder), out, dtype="float32",
        tokenizer=tiny.tokenizer(), template=tiny.CHATML, parts=parts,
    )  # fmt: skip
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (16, 16, True)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), out)
    expected = logits(model)
    merged = add_to_weights(loaded(folder), out)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert (expected - untuned).abs().max() > 0.01
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    for tensor in load_file(out / "adapter_model.safetensors").values():
        assert tensor.dtype == torch.float32


def trained(name: str, folder: Path, out: Path, *, stop_at: int | None = None) -> list[float]:
    """Losses of a short run; it ends early where `stop_at` is reached, like a killed one."""
    torch.manual_seed(3)
    model = METHODS[method(name).kind].prepare(
        loaded(folder, QUANTIZED.get(name, "none")), method(name)
    )
    losses: list[float] = []

    def listen(line: dict[str, Any]) -> None:
        losses.append(line["loss"])
        if line["step"] == stop_at:
            raise KeyboardInterrupt

    train = TrainSection(
        batch_size=8,
        learning_rate=1e-2,
        beta2=0.999,
        warmup_steps=1,
        save_every=1,
        weight_decay=0.1,
    )
    world = int(os.environ.get("WORLD_SIZE", 1))
    try:
        fit(
            model, FitData(tiny.rows(ROWS), [], 0), train, STEPS, method=method(name),
            objective=ObjectiveSection(kind="sft"), checkpoints=out / "checkpoints",
            metrics=out / "metrics.jsonl", listen=listen,
        )  # fmt: skip
    except KeyboardInterrupt:
        assert world == 1
    return losses


@pytest.mark.parametrize("name", [*CASES, *QUANTIZED])
def test_resume_is_exact(name: str, folder: Path, tmp_path: Path) -> None:
    whole = trained(name, folder, tmp_path / "whole")
    trained(name, folder, tmp_path / "cut", stop_at=3)  # its newest checkpoint is of step 2
    rest = trained(name, folder, tmp_path / "cut")
    assert len(whole) == STEPS
    assert rest == whole[2:]
    files = [
        sorted((tmp_path / which / "checkpoints").glob("step_*"))[-1] / "weights.safetensors"
        for which in ("whole", "cut")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def two_processes(folder: Path, out: Path) -> Iterator[dict[str, list[float]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(out / str(rank))],
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tiny.__file__).parent),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    yield from (json.loads(text.splitlines()[-1]) for text in said)


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    """What each of two processes logs under gloo, every method in turn."""
    return list(two_processes(folder, tmp_path_factory.mktemp("two")))


@pytest.mark.parametrize("name", [*CASES, *QUANTIZED])
def test_two_processes_are_one(
    name: str, both: list[dict[str, list[float]]], folder: Path, tmp_path: Path
) -> None:
    alone = trained(name, folder, tmp_path / "alone")
    # int8 rounds activations by the rows beside them, and each process has half of the rows.
    for found in both:
        assert found[name] == pytest.approx(alone, rel={"int8": 1e-3}.get(name, 1e-5))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["lora", "lora and a whole module", "full", "ia3", "prompt"])
def test_half_precision_trains_and_answers(
    name: str, dtype: str, folder: Path, tmp_path: Path
) -> None:
    """In the fast path and in the plain one, and again from what was saved."""

    def half(path: Path) -> Any:
        return load_base(path, dtype=dtype, attention="eager", device="cpu")

    found = []
    for fast in (True, False):
        torch.manual_seed(3)
        model = METHODS[method(name).kind].prepare(half(folder), method(name))
        losses: list[float] = []
        fit(
            model, FitData(tiny.rows(24), [], 0),
            TrainSection(
                batch_size=8, learning_rate=1e-2, beta2=0.999, warmup_steps=0, fast=fast
            ),
            STEPS,
            method=method(name), objective=ObjectiveSection(kind="sft"),
            checkpoints=tmp_path / f"{fast}", metrics=tmp_path / f"{fast}.jsonl",
            listen=lambda line, to=losses: to.append(line["loss"]),
        )  # fmt: skip
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=0.01)
    assert len(set(found[0])) == STEPS
    out = tmp_path / "tuned"
    out.mkdir()
    save_tuned(
        model, method(name), located(folder), out, dtype=dtype,
        tokenizer=tiny.tokenizer(), template=tiny.CHATML, parts=(),
    )  # fmt: skip
    again = load_tuned(out, located(folder), half)
    ids = torch.arange(20, 32).unsqueeze(0)
    said = again.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert said.shape[1] <= 16
    with again.disable_adapter(), torch.no_grad():
        untuned = again(input_ids=ids).logits.float()
    torch.testing.assert_close(untuned[:, -12:], logits(loaded(folder)), rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"targets": "*proj"}, "no-target"),
        ({"targets": ["nothing"]}, "no-target"),
        ({"targets": ["q_proj", "nothing"]}, "no-target"),
        ({"train_also": ["nothing"]}, "no-module"),
    ],
)
def test_names_that_match_nothing_are_errors(
    settings: dict[str, Any], code: str, folder: Path
) -> None:
    with pytest.raises(InputError) as caught:
        METHODS["lora"].prepare(loaded(folder), tiny.method(**settings))
    assert caught.value.code == code


@pytest.mark.parametrize("merged", [False, True])
def test_training_goes_on_from_an_adapter_on_a_tied_head(
    merged: bool, folder: Path, tmp_path: Path
) -> None:
    name = "lora on a tied head"
    first = prepared(name, folder)
    out = saved(name, first, folder, tmp_path / "first")
    model = METHODS["lora"].prepare(add_older(loaded(folder), out, merged=merged), method(name))
    torch.testing.assert_close(logits(model), logits(first), rtol=1e-4, atol=1e-4)
    embeddings = model.get_input_embeddings().weight
    torch.testing.assert_close(embeddings, loaded(folder).get_input_embeddings().weight)


def test_new_tokens_beside_a_head_that_is_a_target_are_refused(folder: Path) -> None:
    grown = load_base(folder, dtype="float32", attention="eager", device="cpu", tokens=322)
    with pytest.raises(InputError, match="new tokens"):
        METHODS["lora"].prepare(grown, method("lora on a tied head"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_what_cannot_be_added_up_is_refused(folder: Path) -> None:
    model = METHODS["lora"].prepare(loaded(folder), tiny.method(targets=["embed_tokens"]))
    with pytest.raises(InputError, match="linear layers"):
        own_part(model)


def test_packed_weights_are_not_trained(folder: Path) -> None:
    packed = loaded(folder, "nf4")
    with pytest.raises(InputError, match="packed weights"):
        METHODS["full"].prepare(packed, tiny.method("full"))
    with pytest.raises(InputError, match="cannot be trained"):
        METHODS["lora"].prepare(packed, tiny.method(train_also=["q_proj"]))


if __name__ == "__main__":
    base, target = map(Path, sys.argv[1:])
    cases = (*CASES, *QUANTIZED)
    print(json.dumps({name: trained(name, base, target / name) for name in cases}))
