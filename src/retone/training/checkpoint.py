"""Checkpoints: everything that a bit-exact continuation needs, in safetensors and JSON.

    step_000200/ weights.safetensors optimizer.safetensors random.safetensors state.json
    best_000150/ weights.safetensors state.json

A checkpoint names the best weights known at its step, and older ones are deleted only after it is
written; so a run killed at any moment finds both, and weights from steps that the continuation
will do again are dropped.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
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


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of everything that is trained."""
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write `step_NNNNNN` whole, then delete what it makes needless."""
    with whole_folder(folder / f"step_{progress.step:06d}") as staging:
        save_file(_copies(trained_weights(model)), staging / "weights.safetensors")
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


def save_best(folder: Path, model: nn.Module, progress: Progress) -> None:
    """Keep the weights with the lowest evaluation loss so far."""
    with whole_folder(best_folder(folder, progress)) as staging:
        save_file(_copies(trained_weights(model)), staging / "weights.safetensors")
        write_json(staging / "state.json", asdict(progress))


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Continue from the newest checkpoint, if there is one.

    Restores weights, optimizer and random state as they were.
    """
    found = checkpoint_folders(folder)
    if not found:
        return None
    newest = found[-1]
    load_weights(model, newest)
    _restore_optimizer(optimizer, load_file(newest / "optimizer.safetensors"))
    _restore_random(load_file(newest / "random.safetensors"))
    progress = Progress(**read_json(newest / "state.json"))
    for best in folder.glob("best_*"):
        if best != best_folder(folder, progress):
            shutil.rmtree(best)
    return progress


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put saved trained weights back; InputError when they belong to another model."""
    saved = load_file(folder / "weights.safetensors")
    current = trained_weights(model)
    if saved.keys() != current.keys():
        other = sorted(saved.keys() ^ current.keys())[0]
        raise InputError(
            "the checkpoint belongs to another model or method",
            f"{folder}: {other} is only on one side",
            "retone run RECIPE --fresh",
            "other-checkpoint",
        )
    for name, tensor in current.items():
        tensor.copy_(saved[name])


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return _copies(
        {
            f"{index}.{name}": torch.as_tensor(value)
            for index, values in state.items()
            for name, value in values.items()
        }
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**whole, "state": state})


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
