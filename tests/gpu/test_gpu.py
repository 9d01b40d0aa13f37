"""What needs a CUDA device: types, packed bases, paged optimizers, layers computed twice."""

from __future__ import annotations

import gc
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from retone.config import ObjectiveSection, TrainSection
from retone.models.loading import load_base
from retone.models.methods import METHODS
from retone.planning import probe_machine
from retone.presets import type_for
from retone.training.loop import FitData, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose layers are wide enough to be packed, and their optimizer state paged."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.1}
    return tiny.folder(tmp_path_factory.mktemp("base"), **sizes)


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


def losses(
    folder: Path, out: Path, base: dict[str, Any], *, kill_at: int | None = None, **train: Any
) -> list[float]:
    """Of a few steps on the GPU, or of fewer where it is killed."""
    torch.manual_seed(0)
    kind = train.pop("kind", "lora")
    method = tiny.method(kind, **train.pop("method", {}))
    given = {"dtype": "float32", "attention": "sdpa", "device": "cuda", **base}
    model = METHODS[kind].prepare(load_base(folder, **given), method)
    found: list[float] = []
    settings = {"batch_size": 8, "learning_rate": 5e-3, "beta2": 0.999, "warmup_steps": 0, **train}

    def listen(line: dict[str, Any]) -> None:
        found.append(line["loss"])
        if line["step"] == kill_at:
            raise Killed

    with suppress(Killed):
        fit(
            model, FitData(tiny.rows(32), tiny.rows(4, seed=1), 0), TrainSection(**settings), STEPS,
            method=method, objective=ObjectiveSection(kind="sft"), checkpoints=out / "checkpoints",
            metrics=out / "metrics.jsonl", listen=listen,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_float32(
    dtype: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    exact = losses(folder, tmp_path / "exact", {}, kind=kind, learning_rate=1e-3)
    half = losses(folder, tmp_path / "half", {"dtype": dtype}, kind=kind, learning_rate=1e-3)
    assert half == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_packed_bases_learn(quantization: str, dtype: str, folder: Path, tmp_path: Path) -> None:
    base = {"quantization": quantization, "dtype": dtype}
    packed = load_base(folder, device="cuda", **base).model.layers[0].self_attn.q_proj
    assert type(packed).__name__ == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    found = losses(folder, tmp_path, base, epochs=None)
    assert found[-1] < found[0] - 0.05


@pytest.mark.parametrize(
    ("kind", "method", "rate"),
    [
        ("lora", {"dora": True}, 5e-3),
        ("ia3", {}, 5e-2),
        ("prefix", {}, 5e-2),
        ("prompt", {}, 0.3),
        ("bottleneck", {}, 2e-2),
        ("unfreeze", {"layers": 1}, 1e-3),
        ("last_layers", {"layers": 1}, 1e-3),
    ],
)
def test_methods_learn(
    kind: str, method: dict[str, Any], rate: float, folder: Path, tmp_path: Path
) -> None:
    """The second epoch against the first: both are of the same rows."""
    base = {"dtype": "float16"}
    found = losses(folder, tmp_path, base, kind=kind, method=method, learning_rate=rate)
    half = STEPS // 2
    assert statistics.mean(found[half:]) < statistics.mean(found[:half]) - 0.1


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit", "lion", "muon"])
def test_optimizers_learn(optimizer: str, folder: Path, tmp_path: Path) -> None:
    """All weights: those of adapters are so small that bitsandbytes leaves their state whole."""
    rate = 5e-4 if optimizer == "lion" else 1e-3
    found = losses(folder, tmp_path, {}, kind="full", optimizer=optimizer, learning_rate=rate)
    assert found[-1] < found[0] - 0.05


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_checkpointing_changes_no_loss_and_takes_less(quantization: str, tmp_path: Path) -> None:
    deep = tiny.folder(tmp_path / "base", hidden_size=256, intermediate_size=512,
                       initializer_range=0.1, num_hidden_layers=16)  # fmt: skip

    def measured(out: str, **train: Any) -> tuple[list[float], int]:
        """Losses, and bytes at the peak beyond what was there before."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = losses(deep, tmp_path / out, {"quantization": quantization}, **train)
        return found, torch.cuda.max_memory_allocated() - before

    plain, most = measured("plain")
    twice, less = measured("twice", gradient_checkpointing=True)
    assert twice == pytest.approx(plain, rel=1e-4)
    assert less < most


@pytest.mark.parametrize(
    ("dtype", "train"),
    [
        ("float16", {}),
        ("float32", {"kind": "full", "optimizer": "paged_adamw_8bit", "learning_rate": 1e-3}),
    ],
)
def test_a_killed_run_goes_on(
    dtype: str, train: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    base = {"dtype": dtype}
    whole = losses(folder, tmp_path / "whole", base, save_every=2, **train)
    killed = losses(folder, tmp_path / "killed", base, save_every=2, kill_at=5, **train)
    pages = _pages()
    resumed = losses(folder, tmp_path / "killed", base, save_every=2, **train)
    assert (_pages() > pages) == ("optimizer" in train)
    assert len(whole) == STEPS
    assert killed == pytest.approx(whole[:5], rel=1e-3)  # sums on a GPU have no fixed order
    assert resumed == pytest.approx(whole[4:], rel=1e-3)  # step 4 was the last that was saved


def _pages() -> int:
    """Tensors that bitsandbytes may move off the GPU, of all optimizers so far."""
    from bitsandbytes.functional import GlobalPageManager

    return len(GlobalPageManager.get_instance().paged_tensors)


def test_this_device_has_a_type() -> None:
    machine = probe_machine()
    assert machine.device == "cuda"
    assert machine.capability >= 3.5
    dtype, because = type_for("cuda", machine.capability, "llama")
    assert (dtype == "bfloat16") == torch.cuda.is_bf16_supported(including_emulation=False)
    assert because
