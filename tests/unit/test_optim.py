"""Optimizers, schedules and what else a step may do."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import tiny
from retone.config import MethodSection, ObjectiveSection, TrainSection
from retone.data.batching import collate
from retone.errors import MachineError
from retone.models.adapters import lora
from retone.models.layers import Opening, full
from retone.models.methods import METHODS
from retone.models.precision import mixed_precision
from retone.training.checkpoint import (
    Progress,
    load_checkpoint,
    save_checkpoint,
    trained_parameters,
)
from retone.training.loop import FitData, fit
from retone.training.losses import next_token
from retone.training.noise import noisy_embeddings
from retone.training.optim import (
    LAST_SHARE,
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    rate_at,
    warmup_share,
)

NAMES = list(OPTIMIZERS)
SCALER = torch.amp.GradScaler("cpu", enabled=False)


def settings(**given: Any) -> TrainSection:
    return TrainSection(**{"learning_rate": 1e-2, "beta2": 0.999, "warmup_steps": 0, **given})


def test_every_name_of_the_recipe_is_in_its_table() -> None:
    fields = TrainSection.model_fields
    assert set(get_args(fields["optimizer"].annotation)) == set(OPTIMIZERS)
    assert set(get_args(fields["schedule"].annotation)) == set(SCHEDULES)


def a_step(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    loss, weight = next_token(model, collate(tiny.rows(4, seed=seed), 0), fast=True)
    (loss / weight).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_learns_and_goes_on_exactly(name: str, tmp_path: Path) -> None:
    """Three steps, saved, two more; and the same two from what was saved."""
    rows, ends = collate(tiny.rows(4), 0), []
    for loaded in (False, True):
        torch.manual_seed(0)
        model = full(tiny.model(), MethodSection(kind="full"))
        optimizer = make_optimizer(model, settings(optimizer=name, learning_rate=2e-3))
        trained = trained_parameters(model)
        first, weight = next_token(model, rows, fast=True)
        if loaded:
            load_checkpoint(tmp_path, trained, optimizer, SCALER)
        else:
            for seed in range(3):
                a_step(model, optimizer, seed)
            save_checkpoint(tmp_path, trained, optimizer, SCALER, Progress(step=3))
        for seed in (0, 0, 0):
            a_step(model, optimizer, seed)
        last, _ = next_token(model, rows, fast=True)
        assert float((last / weight).detach()) < float((first / weight).detach()) - 0.02
        ends.append({key: parameter.detach().clone() for key, parameter in trained.items()})
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_paged_state_is_loaded_into_memory_of_its_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which can leave a GPU; on a CPU it is memory like any other, so it is asked who made it."""
    model = full(tiny.model(), MethodSection(kind="full"))
    train, trained = settings(optimizer="paged_adamw_8bit"), trained_parameters(model)
    optimizer = make_optimizer(model, train)
    a_step(model, optimizer, 0)
    save_checkpoint(tmp_path, trained, optimizer, SCALER, Progress(step=1))
    again, made = make_optimizer(model, train), []
    make = again.get_state_buffer
    monkeypatch.setattr(
        again, "get_state_buffer", lambda *p, **kind: made.append(make(*p, **kind)) or made[-1]
    )
    load_checkpoint(tmp_path, trained, again, SCALER)
    moments = [state[name] for state in again.state.values() for name in ("state1", "state2")]
    assert {id(tensor) for tensor in moments} == {id(tensor) for tensor in made}
    assert any(tensor.any() for tensor in made)


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    model = full(tiny.model(tie_word_embeddings=False), MethodSection(kind="full"))
    optimizer = make_optimizer(model, settings(optimizer="muon"))
    a_step(model, optimizer, 0)
    by_muon = {
        name for name, p in model.named_parameters() if "momentum_buffer" in optimizer.state[p]
    }
    by_adamw = {name for name, p in model.named_parameters() if "exp_avg" in optimizer.state[p]}
    assert all(name.endswith("_proj.weight") for name in by_muon)
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= by_adamw
    assert len(by_muon) + len(by_adamw) == len(list(model.parameters()))


def test_vectors_are_not_decayed_and_b_may_have_a_rate_of_its_own() -> None:
    model = lora(tiny.model(), MethodSection(rank=4, bias="all"))
    train = settings(weight_decay=0.1)
    for group in make_optimizer(model, train, plus_ratio=16.0).param_groups:
        shapes = {parameter.ndim for parameter in group["params"]}
        assert group["weight_decay"] == (0.1 if shapes == {2} else 0.0)
        assert group["lr"] == pytest.approx(1e-2 * group["scale"])
    scales = {
        name: group["scale"]
        for group in make_optimizer(model, train, plus_ratio=16.0).param_groups
        for parameter in group["params"]
        for name, other in model.named_parameters()
        if other is parameter
    }
    assert {scale for name, scale in scales.items() if ".lora_B." in name} == {16.0}
    assert {scale for name, scale in scales.items() if ".lora_A." in name} == {1.0}


def test_without_bitsandbytes_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MachineError) as caught:
        make_optimizer(nn.Linear(2, 2), settings(optimizer="adamw_8bit"))
    assert caught.value.code == "no-bitsandbytes"
    assert "pip install" in caught.value.remedy


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_warm_up_and_never_rise_again(name: str) -> None:
    train = settings(schedule=name, warmup_steps=10)
    rates = [rate_at(step, step / 100, train, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-2 * (step + 1) / 10 for step in range(10)])
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))
    assert rates[10] == pytest.approx(1e-2)
    falls = {"constant": 1.0, "wsd": 1 / 90 / LAST_SHARE, "linear": 1 / 90, "cosine": 0.0003}
    assert rates[99] == pytest.approx(1e-2 * falls[name], rel=0.05)
    if name == "wsd":
        assert rates[10:81] == pytest.approx([1e-2] * 71)
        assert rates[91] == pytest.approx(1e-2 * (9 / 90) / LAST_SHARE)


def test_a_run_by_minutes_warms_up_for_a_share_of_them() -> None:
    """Its steps are not known, and an epoch may be longer than the run."""
    train = settings(schedule="linear", warmup_steps=0.05)
    warmup = warmup_share(train, None)
    rates = [rate_at(step, step / 1000, train, warmup) for step in range(1000)]
    assert rates[25] == pytest.approx(0.5 * rates[50])
    assert max(rates) == rates[50] == pytest.approx(1e-2)
    assert rates[-1] < 0.01 * rates[50]


def test_label_smoothing_is_torchs() -> None:
    model, batch = tiny.model(initializer_range=0.2), collate(tiny.rows(4), 0)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    spoken = torch.log_softmax(logits[:, :-1], -1)  # [batch, seq - 1, vocabulary]
    wanted = spoken.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    each = -(0.9 * wanted + 0.1 * spoken.mean(-1)) * batch.loss_weights[:, 1:]
    loss, _ = next_token(model, batch, fast=True, smoothing=0.1)
    torch.testing.assert_close(loss, each.sum(), rtol=1e-5, atol=0)


def test_noise_is_added_while_training_alone() -> None:
    model = tiny.model()
    ids = torch.arange(3, 13).unsqueeze(0)
    plain = model.get_input_embeddings()(ids).detach()
    with noisy_embeddings(model, 5.0):
        model.train()
        noise = model.get_input_embeddings()(ids).detach() - plain  # [1, 10, 32]
        most = 5.0 / (10 * 32) ** 0.5
        assert float(noise.abs().max()) <= most + 1e-6
        assert float(noise.abs().mean()) == pytest.approx(most / 2, rel=0.15)
        model.eval()
        assert torch.equal(model.get_input_embeddings()(ids), plain)
    model.train()
    assert torch.equal(model.get_input_embeddings()(ids), plain)


def losses(tmp_path: Path, name: str, *, stop_at: int = 0, **given: Any) -> list[float]:
    """Of six steps of a tiny LoRA; stopped by an error in the step `stop_at`."""
    torch.manual_seed(0)
    model = lora(tiny.model(initializer_range=0.2), MethodSection(rank=4))
    found: list[float] = []

    def listen(line: dict[str, Any]) -> None:
        found.append(line["loss"])
        if line["step"] == stop_at:
            raise ZeroDivisionError

    prefix = tuple(range(40, 49))  # shared by all rows
    rows = [
        type(row)(prefix + row.input_ids, (0.0,) * 9 + row.loss_weights) for row in tiny.rows(24)
    ]
    fit(
        model, FitData(rows, [], 0), settings(batch_size=8, **given), 6,
        method=MethodSection(), objective=ObjectiveSection(kind="sft"),
        checkpoints=tmp_path / name, metrics=tmp_path / f"{name}.jsonl",
        listen=listen,
    )  # fmt: skip
    assert not model.is_activation_checkpointing
    return found


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_any_optimizer_resumes_exactly(name: str, tmp_path: Path) -> None:
    given = {"optimizer": name, "save_every": 1, "weight_decay": 0.1}
    whole = losses(tmp_path, "whole", **given)
    with pytest.raises(ZeroDivisionError):
        losses(tmp_path, "cut", stop_at=4, **given)
    assert losses(tmp_path, "cut", **given) == whole[3:]
    ends = [
        sorted((tmp_path / which).glob("step_*"))[-1] / "weights.safetensors"
        for which in ("whole", "cut")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_schedule_reaches_every_part(name: str, tmp_path: Path) -> None:
    """At a rate that falls to nothing at once, nothing more is learned."""
    falls = {"optimizer": name, "learning_rate": 1e-12}
    still = losses(tmp_path, "still", **falls)
    again = losses(tmp_path, "again", optimizer=name)
    assert again[0] == still[0]
    assert again[-1] < still[-1] - 0.05
    late = losses(tmp_path, "late", optimizer=name, warmup_steps=6)
    assert late != pytest.approx(again, rel=1e-6)


def test_checkpointing_changes_no_loss_and_noise_does(tmp_path: Path) -> None:
    plain = losses(tmp_path, "plain")
    twice = losses(tmp_path, "twice", gradient_checkpointing=True)
    assert twice == pytest.approx(plain, rel=1e-5)
    noisy = losses(tmp_path, "noisy", neftune_alpha=5.0)
    assert noisy != pytest.approx(plain, rel=1e-5)


def test_checkpointing_computes_layers_twice(tmp_path: Path) -> None:
    """The option does something: forward passes of a decoder layer are counted."""
    counts = {}
    for checkpointing in (False, True):
        model = lora(tiny.model(), MethodSection(rank=4)).train()
        calls: list[int] = []
        layer = model.get_decoder().layers[0].self_attn
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        loss, _ = next_token(model, collate(tiny.rows(4), 0), fast=True)
        loss.backward()
        counts[checkpointing] = len(calls)
    assert counts == {False: 1, True: 2}


def test_layers_open_from_the_top() -> None:
    method = MethodSection(kind="unfreeze", layers=1, open_until=0.5)
    model = full(tiny.model(num_hidden_layers=4), method)
    opening = Opening(model, method)

    def frozen() -> set[str]:
        closed = (name for name, p in model.named_parameters() if not p.requires_grad)
        return {".".join(name.split(".")[1:3]) for name in closed}

    seen = []
    for done in (0.0, 0.12, 0.13, 0.25, 0.38, 0.5, 0.9):
        opening.at(done)
        seen.append(frozen())
    # The embeddings are the head's too (they are tied), so they are open from the start.
    lowest = {"layers.0", "layers.1", "layers.2"}
    assert seen[0] == lowest
    assert seen[1] == lowest
    assert seen[-2] == seen[-1] == set()
    assert all(later <= earlier for earlier, later in pairwise(seen))
    assert len({frozenset(each) for each in seen}) == 4


def test_whole_half_precision_layers_are_cast_and_adapters_are_not() -> None:
    half = tiny.model().to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    assert mixed_precision(lora(half, MethodSection(rank=4))) == "no"
    whole = tiny.model().to(torch.bfloat16)
    whole.config.dtype = torch.bfloat16
    assert mixed_precision(full(whole, MethodSection(kind="full"))) == "bf16"
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    norm = tiny.model().to(torch.bfloat16)
    norm.config.dtype = torch.bfloat16
    assert mixed_precision(lora(norm, tiny.method(train_also=["norm"]))) == "bf16"
    single = full(tiny.model(), MethodSection(kind="full"))
    assert mixed_precision(single) == "no"
    single.config.dtype = torch.float16
    assert mixed_precision(single) == "fp16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_in_half_precision_follows_float32(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    ends = []
    for number in (torch.float32, dtype):
        model = tiny.model(initializer_range=0.2).to(number)
        model.config.dtype = number
        method = tiny.method(kind)
        found: list[float] = []
        torch.manual_seed(0)
        fit(
            METHODS[kind].prepare(model, method), FitData(tiny.rows(24), [], 0),
            settings(batch_size=8, learning_rate=1e-3), 6, method=method,
            objective=ObjectiveSection(kind="sft"), checkpoints=tmp_path / str(number),
            metrics=tmp_path / f"{number}.jsonl",
            listen=lambda line, to=found: to.append(line["loss"]),
        )  # fmt: skip
        ends.append(found)
    assert ends[1] == pytest.approx(ends[0], rel=0.01)
    assert ends[1] != ends[0]


def test_the_loss_scale_of_float16_is_in_the_checkpoint(tmp_path: Path) -> None:
    """It starts at 65,536 and is halved at each overflow; a resumed run starts where it was."""
    model = full(tiny.model(), MethodSection(kind="full"))
    optimizer = make_optimizer(model, settings())
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    save_checkpoint(tmp_path, trained_parameters(model), optimizer, scaler, Progress(step=1))
    again = torch.amp.GradScaler("cpu")
    load_checkpoint(tmp_path, trained_parameters(model), optimizer, again)
    assert again.get_scale() == 512.0
