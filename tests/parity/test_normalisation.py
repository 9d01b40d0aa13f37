"""Contract 3: however the rows of a step are cut into batches, the loss and gradients are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from retone.batch import EncodedRow
from retone.config import MethodSection, ObjectiveSection, TrainSection
from retone.data.batching import collate, epoch_steps, micro_batches
from retone.models.adapters import lora
from retone.training import kernels
from retone.training.loop import FitData, fit
from retone.training.losses import next_token

RTOL = 1e-5


def tuned_model(seed: int = 0) -> Any:
    model = lora(tiny.model(seed, initializer_range=0.2), MethodSection(rank=4, alpha=8.0))
    torch.manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # peft starts B at zero; then half of the gradients would be zero
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def step(
    rows: list[EncodedRow], micro: int, *, fast: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimizer step in micro-batches."""
    model = tuned_model()
    weight = sum(sum(row.loss_weights) for row in rows)
    total = 0.0
    for batch in micro_batches(rows, 0, most_rows=micro, most_tokens=None):
        part, _ = next_token(model, batch, fast=fast)
        (part / weight).backward()
        total += float(part.detach()) / weight
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [8, 4, 1])
@pytest.mark.parametrize("fast", [True, False])
def test_accumulation_is_exact(micro: int, fast: bool) -> None:
    rows = tiny.rows(16)
    loss, gradients = step(rows, 16, fast=fast)
    other_loss, other = step(rows, micro, fast=fast)
    assert other_loss == pytest.approx(loss, rel=RTOL)
    assert gradients.keys() == other.keys()
    assert len(gradients) == 28
    for name, gradient in gradients.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_mean_of_means_would_differ() -> None:
    """The guard can fail: averaging micro-batch means gives another number on these rows."""
    rows = tiny.rows(16)
    loss, _ = step(rows, 16, fast=True)
    means = []
    for batch in micro_batches(rows, 0, most_rows=4, most_tokens=None):
        part, weight = next_token(tuned_model(), batch, fast=True)
        means.append(float((part / weight).detach()))
    assert abs(sum(means) / len(means) - loss) > 10 * RTOL * loss


def run_fit(
    tmp_path: Path, name: str, rows: list[EncodedRow], model: Any = None, **settings: Any
) -> list[float]:
    losses: list[float] = []
    train = TrainSection(batch_size=16, learning_rate=5e-3, beta2=0.999, warmup_steps=1, **settings)
    fit(
        model or tuned_model(),
        FitData(rows, [], pad_id=0),
        train,
        6,
        method=MethodSection(),
        objective=ObjectiveSection(kind="sft"),
        checkpoints=tmp_path / name,
        metrics=tmp_path / f"{name}.jsonl",
        listen=lambda line: losses.append(line["loss"]),
    )
    return losses


def test_fit_16x1_is_8x2_is_4x4(tmp_path: Path) -> None:
    rows = tiny.rows(40)
    whole = run_fit(tmp_path, "16x1", rows, micro_batch_size=16)
    assert len(whole) == 6
    for micro in (8, 4, 1):
        other = run_fit(tmp_path, f"{micro}", rows, micro_batch_size=micro)
        assert other == pytest.approx(whole, rel=RTOL)


def test_fast_is_plain(tmp_path: Path) -> None:
    rows = tiny.rows(40)
    fast = run_fit(tmp_path, "fast", rows, micro_batch_size=16)
    plain = run_fit(tmp_path, "plain", rows, micro_batch_size=16, fast=False)
    assert fast == pytest.approx(plain, rel=RTOL)


def test_bucketed_is_one_row_at_a_time() -> None:
    rows = tiny.rows(40)
    for indices in epoch_steps([len(row.input_ids) for row in rows], 16, seed=0, epoch=0):
        picked = [rows[index] for index in indices]
        together, _ = step(picked, len(picked), fast=True)
        alone, _ = step(picked, 1, fast=True)
        assert alone == pytest.approx(together, rel=RTOL)


def test_an_epoch_holds_every_row_once_and_buckets_pad_less() -> None:
    rows = tiny.rows(200, shortest=4, longest=100)
    lengths = [len(row.input_ids) for row in rows]
    steps = epoch_steps(lengths, 16, seed=3, epoch=1)
    assert sorted(index for indices in steps for index in indices) == list(range(200))
    assert epoch_steps(lengths, 16, seed=3, epoch=1) == steps
    assert epoch_steps(lengths, 16, seed=3, epoch=2) != steps

    def padding(batches: list[list[int]]) -> int:
        return sum(
            max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches
        )

    unsorted = [list(range(start, min(start + 16, 200))) for start in range(0, 200, 16)]
    assert padding(steps) < padding(unsorted) / 2


def test_weights_of_padding_are_zero() -> None:
    batch = collate(tiny.rows(5), pad_id=0)
    assert float((batch.loss_weights * (1 - batch.attention_mask)).abs().sum()) == 0.0
    assert batch.tokens == int(batch.attention_mask.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_lora_is_peft(dtype: torch.dtype) -> None:
    """The fused layer against peft's own forward, gradients included."""
    model = tuned_model().to(dtype)
    ids = torch.randint(3, 320, (3, 11), generator=torch.Generator().manual_seed(0))
    results = []
    for fused in (False, True):
        model.zero_grad()
        if fused:
            with kernels.fused_lora(model) as layers:
                logits = model(input_ids=ids).logits
                logits.square().mean().backward()
            assert layers == 14
        else:
            logits = model(input_ids=ids).logits
            logits.square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients))
    (plain, plain_gradients), (fast, fast_gradients) = results
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-4, atol=1e-8)


def test_fused_lora_leaves_what_it_does_not_know() -> None:
    """Dropout and switched-off adapters stay on peft's own path."""
    dropped = lora(tiny.model(), MethodSection(rank=4, dropout=0.5))
    with kernels.fused_lora(dropped) as layers:
        assert layers == 0
    model = tuned_model()
    with model.disable_adapter(), kernels.fused_lora(model) as layers:
        assert layers == 0


def test_bf16_loss_is_within_one_percent() -> None:
    rows = tiny.rows(16)
    exact, _ = step(rows, 16, fast=True)
    model = lora(
        tiny.model(initializer_range=0.2).to(torch.bfloat16), MethodSection(rank=4, alpha=8.0)
    )
    reference = tuned_model()
    saved = {n: p for n, p in reference.named_parameters() if "lora" in n}
    for name, parameter in model.named_parameters():
        if name in saved:
            parameter.data.copy_(saved[name].data)
    with kernels.fused_lora(model):
        part, weight = next_token(model, collate(rows, pad_id=0), fast=True)
    assert float(part.detach() / weight) == pytest.approx(exact, rel=0.01)


def with_prefix(count: int) -> list[EncodedRow]:
    """Rows that start with the same 9 masked tokens."""
    prefix = tuple(range(40, 49))
    return [
        EncodedRow(prefix + row.input_ids, (0.0,) * 9 + row.loss_weights)
        for row in tiny.rows(count)
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_shared_prefix_is_exact(attention: str) -> None:
    """Loss and gradients with the prefix computed once, against every row alone."""
    model = tuned_model()
    model.config._attn_implementation = attention
    batch = collate(with_prefix(8), pad_id=0)
    assert kernels.shared_prefix(model, batch) == 9
    results = []
    for fast in (True, False):
        model.zero_grad()
        loss, _ = next_token(model, batch, fast=fast)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    (fast_loss, fast_gradients), (loss, gradients) = results
    torch.testing.assert_close(fast_loss, loss, rtol=RTOL, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_prefix_is_shared_only_where_that_is_exact() -> None:
    model = tuned_model()
    rows = with_prefix(4)
    assert kernels.shared_prefix(model, collate(rows[:1], 0)) == 0  # nothing to share
    assert kernels.shared_prefix(model, collate(tiny.rows(4), 0)) == 0  # other beginnings
    trained_early = [
        EncodedRow(row.input_ids, (0.0,) * 5 + (1.0,) * (len(row.input_ids) - 5)) for row in rows
    ]
    assert kernels.shared_prefix(model, collate(trained_early, 0)) == 4
    same = [rows[0], rows[0]]
    assert kernels.shared_prefix(model, collate(same, 0)) < rows[0].loss_weights.index(1.0)
    model.config.sliding_window = 8
    model.config.layer_types = ["sliding_attention", "sliding_attention"]
    assert kernels.shared_prefix(model, collate(rows, 0)) == 0


def test_fast_is_plain_with_a_shared_prefix(tmp_path: Path) -> None:
    rows = with_prefix(40)
    fast = run_fit(tmp_path, "fast", rows, micro_batch_size=16)
    plain = run_fit(tmp_path, "plain", rows, micro_batch_size=8, fast=False)
    assert fast == pytest.approx(plain, rel=RTOL)


def test_fast_is_plain_where_the_head_has_an_adapter(tmp_path: Path) -> None:
    """The shared prefix sends no position through it."""

    def model() -> Any:
        torch.manual_seed(1)
        return lora(tiny.model(), tiny.method(targets=["q_proj", "lm_head"]))

    rows = with_prefix(40)
    fast = run_fit(tmp_path, "fast", rows, model(), micro_batch_size=16)
    plain = run_fit(tmp_path, "plain", rows, model(), micro_batch_size=8, fast=False)
    assert fast == pytest.approx(plain, rel=RTOL)


def test_a_token_limit_cuts_evenly_and_exactly(tmp_path: Path) -> None:
    rows = tiny.rows(16, longest=60)
    batches = list(micro_batches(rows, 0, most_rows=None, most_tokens=300))
    assert sum(batch.rows for batch in batches) == 16
    assert max(batch.input_ids.numel() for batch in batches) <= 300
    assert max(b.rows for b in batches) - min(b.rows for b in batches) <= 4
    assert [b.rows for b in micro_batches(rows[:2], 0, most_rows=None, most_tokens=1)] == [1, 1]
    assert list(micro_batches([], 0, most_rows=4, most_tokens=9)) == []
    whole = run_fit(tmp_path, "whole", rows)
    cut = run_fit(tmp_path, "cut", rows, micro_batch_tokens=200)
    assert cut == pytest.approx(whole, rel=RTOL)
