"""The training loop: `fit` is THE step, in the open. There is one loop, never a copy of it."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from retone.batch import Batch, EncodedRow
from retone.config import MethodSection, ObjectiveSection, TrainSection
from retone.data.batching import epoch_steps, micro_batches
from retone.errors import Interrupted, MachineError
from retone.models.layers import Opening
from retone.models.precision import in_precision, mixed_precision
from retone.training import kernels
from retone.training.checkpoint import (
    Progress,
    best_folder,
    load_checkpoint,
    load_weights,
    save_best,
    save_checkpoint,
    trained_parameters,
)
from retone.training.losses import LOSSES, Loss
from retone.training.noise import noisy_embeddings
from retone.training.optim import make_optimizer, rate_at, warmup_share

Listener = Callable[[dict[str, Any]], None]  # gets each line of metrics.jsonl


@dataclass(frozen=True)
class FitData:
    """What `fit` trains and evaluates on."""

    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow]
    pad_id: int


@dataclass(frozen=True)
class FitResult:
    """How training ended; the model holds the best weights.

    Attributes:
        steps: optimizer steps done in all, resumed ones included.
        best_step: step of the lowest evaluation loss (the last one without validation rows).
        best_loss: that loss in nats per trained token.
        seconds: time inside the loop, over all sittings.
        rows, tokens: processed in that time (padding not counted).
        peak_bytes: most memory the process (or the GPU) held.
    """

    steps: int
    best_step: int
    best_loss: float | None
    seconds: float
    rows: int
    tokens: int
    peak_bytes: int


def fit(
    model: Any,
    data: FitData,
    train: TrainSection,
    total_steps: int | None,
    *,
    method: MethodSection,
    objective: ObjectiveSection,
    checkpoints: Path,
    metrics: Path,
    listen: Listener,
) -> FitResult:
    """Train `model` and leave its best weights in it.

    Args:
        model: a causal language model whose trained parameters require gradients.
        data: encoded rows; validation may be empty.
        train: resolved settings.
        total_steps: optimizer steps; None trains for `train.minutes`.
        method: what is trained, as the model was prepared for it.
        objective: which loss.
        checkpoints: folder that the run resumes from when it holds checkpoints.
        metrics: file that gets one JSON line a logged step.
        listen: called with every such line.

    Raises:
        Interrupted: stopped by Ctrl-C or SIGTERM, after a checkpoint.
        MachineError: a loss or the gradients are not finite, or the disk is full.
    """
    later = DistributedDataParallelKwargs(find_unused_parameters=method.kind == "unfreeze")
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[later])
    bare, device, precision = model, accelerator.device, mixed_precision(model)
    loss = in_precision(partial(LOSSES[objective.kind], fast=train.fast), precision, device)
    optimizer = make_optimizer(model, train, plus_ratio=method.plus_ratio)
    trained, opening = trained_parameters(model), Opening(model, method)
    model = accelerator.prepare(model)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    state = load_checkpoint(checkpoints, trained, optimizer, scaler) or Progress()
    log = _MetricsLog(metrics, state.step, listen)
    started = time.perf_counter() - state.seconds
    steps = _step_rows(data.train, train, start=state.step)
    world, rank = accelerator.num_processes, accelerator.process_index
    smoothing, warmup = objective.label_smoothing, warmup_share(train, total_steps)
    model.train()

    with _prepared(bare, train), _stop_signal() as stopped:
        for epoch, indices in steps:
            done = _share_done(state, train, total_steps)
            if done >= 1.0:
                break
            rate = rate_at(state.step, done, train, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            opening.at(done)

            rows = [data.train[index] for index in indices]
            # One normalisation: the weights of the whole step, over all micro-batches and devices.
            weight = sum(sum(row.loss_weights) for row in rows)
            loss_sum = torch.zeros((), device=device)
            # The last step may have fewer rows than devices. DDP waits for all, so one without rows
            # goes through the motions with a weight of zero.
            share = 1.0 if rows[rank::world] else 0.0
            mine = list(_forward_batches(rows[rank::world] or rows[:1], train, data.pad_id))
            for number, batch in enumerate(mine, 1):
                with nullcontext() if number == len(mine) else accelerator.no_sync(model):
                    part = share * loss(model, batch.to(device), smoothing=smoothing)[0]
                    # DDP averages over devices; float16's gradients are scaled up.
                    accelerator.backward(scaler.scale(part * (world / weight)))
                loss_sum += part.detach()
            scaler.unscale_(optimizer)
            norm = float(accelerator.clip_grad_norm_(model.parameters(), train.max_grad_norm))
            mean = float(accelerator.reduce(loss_sum)) / weight
            if not math.isfinite(mean):
                raise _diverged(state.step + 1, f"loss {mean}", rate)
            # A scaler leaves such a step out and scales by less; else the weights would be lost.
            if not math.isfinite(norm) and scaler.get_scale() <= 1:
                raise _diverged(state.step + 1, f"gradients of norm {norm}", rate)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            state.step += 1
            state.rows += len(rows)
            state.tokens += sum(len(row.input_ids) for row in rows)
            state.seconds = time.perf_counter() - started
            last = _share_done(state, train, total_steps) >= 1.0
            line: dict[str, Any] = {
                "step": state.step,
                "epoch": epoch,
                "loss": mean,
                "lr": rate,
                "grad_norm": norm if math.isfinite(norm) else None,
            }
            if data.validation and (last or state.step % (train.evaluate_every or math.inf) == 0):
                line["eval_loss"] = evaluation_loss(model, data, train, loss)
                if not math.isfinite(line["eval_loss"]):
                    raise _diverged(state.step, f"evaluation loss {line['eval_loss']}", rate)
                if state.best_loss is None or line["eval_loss"] < state.best_loss:
                    state.best_loss, state.best_step = line["eval_loss"], state.step
                    save_best(checkpoints, trained, state)
            if last or state.step % train.log_every == 0 or "eval_loss" in line:
                log.write(line, state, total_steps)
            if last or stopped() or state.step % (train.save_every or math.inf) == 0:
                save_checkpoint(checkpoints, trained, optimizer, scaler, state)
            if stopped() and not last:
                raise _stopped(state, total_steps)

    if state.best_loss is not None:
        load_weights(trained, best_folder(checkpoints, state))
    model.eval()
    best = state.best_step if state.best_loss is not None else state.step
    return FitResult(
        state.step, best, state.best_loss, state.seconds, state.rows, state.tokens, peak_memory()
    )


@torch.no_grad()
def evaluation_loss(model: Any, data: FitData, train: TrainSection, loss: Loss) -> float:
    """Mean loss over the validation rows, in nats per trained token."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows = sorted(data.validation, key=lambda row: len(row.input_ids))
    total, weight = 0.0, 0.0
    for batch in _forward_batches(rows, train, data.pad_id):
        part, part_weight = loss(model, batch.to(device))
        total, weight = total + float(part), weight + float(part_weight)
    model.train(was_training)
    return total / weight


def _forward_batches(
    rows: Sequence[EncodedRow], train: TrainSection, pad_id: int
) -> Iterator[Batch]:
    return micro_batches(
        rows, pad_id, most_rows=train.micro_batch_size, most_tokens=train.micro_batch_tokens
    )


def peak_memory() -> int:
    """Most bytes held: by the GPU's allocator, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss also counts the parent's memory at the time of exec
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(peak[1]) * 1024 if peak else 0
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    return int(psutil.Process().memory_info().peak_wset)  # Windows


def _step_rows(
    rows: Sequence[EncodedRow], train: TrainSection, start: int
) -> Iterator[tuple[int, list[int]]]:
    """(epoch, row indices) of every step from `start` on, without end."""
    lengths = [len(row.input_ids) for row in rows]
    per_epoch = math.ceil(len(rows) / train.batch_size)
    for epoch in count(start // per_epoch):
        steps = epoch_steps(lengths, train.batch_size, train.seed, epoch)
        skip = start % per_epoch if epoch == start // per_epoch else 0
        for indices in steps[skip:]:
            yield epoch, indices


def _share_done(state: Progress, train: TrainSection, total_steps: int | None) -> float:
    if total_steps is not None:
        return state.step / total_steps
    return state.seconds / (60.0 * (train.minutes or math.inf))


@contextmanager
def _prepared(model: Any, train: TrainSection) -> Iterator[None]:
    """What a model does otherwise while it is trained: fast paths, noise, layers computed twice."""
    if train.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        with (
            kernels.fused_lora(model) if train.fast else nullcontext(),
            noisy_embeddings(model, train.neftune_alpha),
        ):
            yield
    finally:
        if train.gradient_checkpointing:
            model.activation_checkpointing_disable()


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that the loop reads between two steps."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, frame: asked.append(got)) for number in signals]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class _MetricsLog:
    """metrics.jsonl: lines after the checkpoint that training resumes from are dropped."""

    def __init__(self, path: Path, step: int, listen: Listener) -> None:
        kept = []
        if path.is_file():
            whole = [
                text
                for text in path.read_text(encoding="utf-8").splitlines(True)
                if text.endswith("\n")
            ]
            kept = [text for text in whole if json.loads(text)["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept), encoding="utf-8")
        self._path, self._listen = path, listen

    def write(self, line: dict[str, Any], state: Progress, total_steps: int | None) -> None:
        rates = {
            "rows_per_s": state.rows / state.seconds,
            "tokens_per_s": state.tokens / state.seconds,
            "seconds": state.seconds,
            "memory_bytes": peak_memory(),
            "total_steps": total_steps,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **rates}) + "\n")
        self._listen({**line, **rates})


def _diverged(step: int, found: str, rate: float) -> MachineError:
    return MachineError(
        "training left the finite numbers",
        f"step {step}: {found}, learning rate {rate:.2g}",
        f"--set train.learning_rate={rate / 5:.1g}   (or --set model.dtype=float32)",
        "diverged",
    )


def _stopped(state: Progress, total_steps: int | None) -> Interrupted:
    return Interrupted(
        "training was stopped",
        f"step {state.step}{f' of {total_steps}' if total_steps else ''} is saved",
        "the same command again resumes there",
        "interrupted",
    )
