"""Contract 4: stopped anywhere and resumed is bit for bit what was never stopped."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from retone.config import MethodSection, ObjectiveSection, TrainSection
from retone.errors import InputError, MachineError
from retone.models.adapters import lora
from retone.training import checkpoint
from retone.training.checkpoint import checkpoint_folders, trained_parameters
from retone.training.loop import FitData, FitResult, fit

STEPS = 9
SFT = {"method": MethodSection(), "objective": ObjectiveSection(kind="sft")}
PLAIN = TrainSection(learning_rate=1e-3, beta2=0.999)
DROPOUT = 0.2  # so that the random state matters


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


def start(folder: Path, stop_at: int | None = None) -> tuple[Any, FitResult | None]:
    torch.manual_seed(7)
    model = lora(tiny.model(), MethodSection(rank=4, dropout=DROPOUT))

    def listen(line: dict[str, Any]) -> None:
        if line["step"] == stop_at:
            raise Killed

    train = TrainSection(
        batch_size=8, micro_batch_size=4, learning_rate=5e-3, beta2=0.999, warmup_steps=2,
        weight_decay=0.1, save_every=2, evaluate_every=3,
    )  # fmt: skip
    data = FitData(tiny.rows(30), tiny.rows(6, seed=1), pad_id=0)
    try:
        result = fit(
            model, data, train, STEPS, **SFT,
            checkpoints=folder / "checkpoints", metrics=folder / "metrics.jsonl", listen=listen,
        )  # fmt: skip
    except Killed:
        return model, None
    return model, result


def logged(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times, rates and memory, which may differ."""
    varying = {"rows_per_s", "tokens_per_s", "seconds", "memory_bytes"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in varying} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, FitResult]:
    folder = tmp_path_factory.mktemp("whole")
    model, result = start(folder)
    assert result is not None
    return folder, model, result


@pytest.mark.parametrize("stops", [(1,), (3,), (4,), (8,), (2, 5, 7)])
def test_resume_is_exact(
    stops: tuple[int, ...], tmp_path: Path, uninterrupted: tuple[Path, Any, FitResult]
) -> None:
    folder, model, result = uninterrupted
    for stop in stops:
        start(tmp_path, stop_at=stop)
    resumed, end = start(tmp_path)
    assert end is not None
    assert (end.steps, end.best_step, end.best_loss) == (STEPS, result.best_step, result.best_loss)
    assert logged(tmp_path) == logged(folder)
    ours, theirs = trained_parameters(resumed), trained_parameters(model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    last = [checkpoint_folders(path / "checkpoints")[-1] for path in (tmp_path, folder)]
    for file in ("weights.safetensors", "optimizer.safetensors", "random.safetensors"):
        assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes()


def test_without_the_random_state_it_would_differ(
    tmp_path: Path, uninterrupted: tuple[Path, Any, FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard can fail."""
    start(tmp_path, stop_at=5)
    monkeypatch.setattr(checkpoint, "_restore_random", lambda states: None)
    start(tmp_path)
    assert logged(tmp_path) != logged(uninterrupted[0])


def test_a_finished_run_does_no_further_step(tmp_path: Path) -> None:
    start(tmp_path)
    before = logged(tmp_path)
    _, again = start(tmp_path)
    assert again is not None
    assert again.steps == STEPS
    assert logged(tmp_path) == before


def test_half_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    start(tmp_path, stop_at=5)
    newest = checkpoint_folders(tmp_path / "checkpoints")[-1]
    # What a kill in the middle of writing leaves behind.
    shutil.copytree(newest, newest.parent / ".step_000006.abc")
    (newest.parent / ".step_000006.abc" / "state.json").unlink()
    _, result = start(tmp_path)
    assert result is not None
    assert result.steps == STEPS


def test_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path, stop_at=3)
    kept = checkpoint_folders(tmp_path / "checkpoints")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(MachineError) as caught:
        start(tmp_path)
    assert caught.value.code == "disk-full"
    assert "MB free while writing" in caught.value.found
    assert "resumes" in caught.value.remedy
    assert checkpoint_folders(tmp_path / "checkpoints") == kept
    assert not list((tmp_path / "checkpoints").glob(".step*"))
    monkeypatch.undo()
    _, result = start(tmp_path)
    assert result is not None


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    start(tmp_path, stop_at=3)
    other = lora(tiny.model(), MethodSection(rank=4, targets=["q_proj"]))
    with pytest.raises(InputError, match="belongs to another model or method"):
        fit(
            other, FitData(tiny.rows(8), [], 0), PLAIN, 4, **SFT,
            checkpoints=tmp_path / "checkpoints", metrics=tmp_path / "m", listen=lambda _: None,
        )  # fmt: skip


class _Overflowing(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


@pytest.mark.parametrize("what", ["loss", "gradients", "evaluation loss"])
def test_what_is_not_finite_stops_with_a_remedy(what: str, tmp_path: Path) -> None:
    model = lora(tiny.model(), MethodSection(rank=4))
    trained = [p for p in model.parameters() if p.requires_grad]
    head = model.get_output_embeddings()
    if what == "loss":
        with torch.no_grad():
            trained[0].fill_(math.nan)
    elif what == "gradients":
        head.register_forward_pre_hook(lambda _, given: (_Overflowing.apply(given[0]),))
    else:
        head.register_forward_hook(
            lambda module, _, logits: logits if module.training else logits * math.nan
        )
    before = [p.clone() for p in trained]
    with pytest.raises(MachineError) as caught:
        fit(
            model, FitData(tiny.rows(8), tiny.rows(4, seed=1), 0),
            PLAIN.model_copy(update={"evaluate_every": 1}), 4, **SFT,
            checkpoints=tmp_path / "c", metrics=tmp_path / "m", listen=lambda _: None,
        )  # fmt: skip
    assert caught.value.found.startswith(f"step 1: {what} ")
    assert "--set train.learning_rate=0.0002" in caught.value.remedy
    if what == "gradients":  # they moved nothing
        assert all(torch.equal(p, old) for p, old in zip(trained, before, strict=True))
