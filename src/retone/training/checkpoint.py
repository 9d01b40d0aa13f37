"""Checkpoints: everything that a bit-exact continuation needs, in safetensors and JSON.

    step_000200/ weights.safetensors optimizer.safetensors random.safetensors state.json
    best_000150/ weights.safetensors state.json

A checkpoint names the best weights known at its step, and older ones are deleted only after it is
written; so a run killed at any moment finds both, and weights from steps that the continuation
will do again are dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retone.errors import InputError
from retone.run_dir import read_json, whole_folder, write_json

KEEP = 2  # newest checkpoints kept


@dataclass
class Progress:
    """Where training stands; plain numbers, saved as state.json."""

    step: int = 0
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    best_step: int = 0
    best_loss: float | None = None
    loss_scale: dict[str, float] = field(default_factory=dict)  # of float16 training


Trained = Mapping[str, nn.Parameter]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that requires gradients now."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    folder: Path,
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
) -> None:
    """Write `step_NNNNNN` whole, then delete what it makes needless; arguments as to load it."""
    progress.loss_scale = scaler.state_dict()
    with whole_folder(folder / f"step_{progress.step:06d}") as staging:
        save_file(_copies(trained), staging / "weights.safetensors")
        save_file(_optimizer_tensors(optimizer), staging / "optimizer.safetensors")
        save_file(_random_state(), staging / "random.safetensors")
        write_json(staging / "state.json", asdict(progress))
    for old in checkpoint_folders(folder)[:-KEEP]:
        shutil.rmtree(old)
    for other in folder.glob("best_*"):
        if other != best_folder(folder, progress):
            shutil.rmtree(other)


def best_folder(folder: Path, progress: Progress) -> Path:
    """Where the best weights of `progress` lie."""
    return folder / f"best_{progress.best_step:06d}"


def save_best(folder: Path, trained: Trained, progress: Progress) -> None:
    """Keep the weights with the lowest evaluation loss so far."""
    with whole_folder(best_folder(folder, progress)) as staging:
        save_file(_copies(trained), staging / "weights.safetensors")
        write_json(staging / "state.json", asdict(progress))


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(
    folder: Path, trained: Trained, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Progress | None:
    """Continue from the newest checkpoint, if there is one.

    Args:
        folder: of all checkpoints.
        trained: parameters by name; they get the saved values.
        optimizer: gets its state back, and torch its random state.
        scaler: of float16's gradients.
    """
    found = checkpoint_folders(folder)
    if not found:
        return None
    newest = found[-1]
    load_weights(trained, newest)
    _restore_optimizer(optimizer, load_file(newest / "optimizer.safetensors"))
    _restore_random(load_file(newest / "random.safetensors"))
    progress = Progress(**read_json(newest / "state.json"))
    scaler.load_state_dict(progress.loss_scale)
    for best in folder.glob("best_*"):
        if best != best_folder(folder, progress):
            shutil.rmtree(best)
    return progress


def load_weights(trained: Trained, folder: Path) -> None:
    """Put saved trained weights back; InputError when they belong to another model."""
    saved = load_file(folder / "weights.safetensors")
    if saved.keys() != trained.keys():
        other = sorted(saved.keys() ^ trained.keys())[0]
        raise InputError(
            "the checkpoint belongs to another model or method",
            f"{folder}: {other} is only on one side",
            "retone run RECIPE --fresh",
            "other-checkpoint",
        )
    for name, parameter in trained.items():
        parameter.data.copy_(saved[name])


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, dict[str, Any], nn.Parameter]]:
    """(number, state, parameter) of everything in the optimizer, in the order of its groups."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for number, parameter in enumerate(parameters):
        yield number, optimizer.state[parameter], parameter


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State as tensors; numbers of Python are tensors of one number in 64 bits."""
    wide = {int: torch.int64, float: torch.float64}
    return _copies(
        {
            f"{number}.{name}": torch.as_tensor(value, dtype=wide.get(type(value)))
            for number, state, _ in _states(optimizer)
            for name, value in state.items()
            if value is not None
        }
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    states = {number: (state, p) for number, state, p in _states(optimizer)}
    paged: Any = optimizer if getattr(optimizer, "is_paged", False) else None
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state, parameter = states[int(number)]
        if tensor.ndim == 0 and tensor.dtype in (torch.int64, torch.float64):
            state[name] = tensor.item()
        elif paged is not None and tensor.shape == parameter.shape:
            # A plain tensor would stay on the GPU; bitsandbytes makes one that can leave it.
            buffer = paged.get_state_buffer(parameter, dtype=tensor.dtype)
            state[name] = buffer.copy_(tensor)
        else:
            state[name] = tensor.to(parameter.device)


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
