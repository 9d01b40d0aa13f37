"""AdamW and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from retone.config import TrainSection


def adamw(model: nn.Module, train: TrainSection) -> torch.optim.AdamW:
    """AdamW over what is trained; biases and other vectors are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=train.learning_rate or 0.0, fused=True
    )


# Share of the peak rate at a share of the decay (0 just after the warm-up, 1 at the end).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}


def rate_at(step: int, progress: float, train: TrainSection, warmup: float) -> float:
    """Learning rate of a step.

    Args:
        step: 0-based optimizer step.
        progress: share of the run that is done before this step, 0 to 1.
        train: peak rate, schedule and warm-up steps.
        warmup: share of the run that the warm-up takes.
    """
    peak = train.learning_rate or 0.0
    warmup_steps = train.warmup_steps or 0
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return peak * SCHEDULES[train.schedule](min(1.0, max(0.0, done)))
