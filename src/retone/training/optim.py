"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from retone.config import TrainSection
from retone.models.loading import require_bitsandbytes

Groups = list[dict[str, Any]]


def make_optimizer(model: nn.Module, train: TrainSection, *, plus_ratio: float = 1.0) -> Optimizer:
    """The optimizer of `train.optimizer` over what is trained.

    Biases and other vectors are not decayed. Each group carries `scale`, by which its learning rate
    differs from the schedule's.

    Args:
        model: its parameters that require gradients are trained.
        train: resolved settings.
        plus_ratio: `scale` of LoRA's B matrices (LoRA+, Hayou et al. 2024, arXiv:2402.12354).

    Raises:
        MachineError: bitsandbytes is needed and missing.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = _is_matrix(parameter), plus_ratio if ".lora_B." in name else 1.0
            groups.setdefault(key, []).append(parameter)
    listed = [
        {
            "params": parameters,
            "weight_decay": train.weight_decay if matrices else 0.0,
            "lr": (train.learning_rate or 0.0) * scale,
            "scale": scale,
        }
        for (matrices, scale), parameters in groups.items()
    ]
    return OPTIMIZERS[train.optimizer](model, listed, train)


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it is more than a vector, which may stand as one row or one column."""
    return parameter.ndim >= 2 and min(parameter.shape) > 1


def _betas(train: TrainSection) -> tuple[float, float]:
    assert train.beta2 is not None, "planning.resolve fills train.beta2"
    return train.beta1, train.beta2


def _adamw(model: nn.Module, groups: Groups, train: TrainSection) -> Optimizer:
    return torch.optim.AdamW(groups, betas=_betas(train), fused=True)


def _adamw_8bit(model: nn.Module, groups: Groups, train: TrainSection) -> Optimizer:
    return _bitsandbytes("AdamW8bit", groups, train)


def _paged_adamw_8bit(model: nn.Module, groups: Groups, train: TrainSection) -> Optimizer:
    return _bitsandbytes("PagedAdamW8bit", groups, train)


def _lion(model: nn.Module, groups: Groups, train: TrainSection) -> Optimizer:
    return _bitsandbytes("Lion", groups, train)


def _bitsandbytes(name: str, groups: Groups, train: TrainSection) -> Optimizer:
    require_bitsandbytes(f"train.optimizer={train.optimizer}")
    from bitsandbytes import optim

    made: Optimizer = getattr(optim, name)(groups, betas=_betas(train))
    return made


def _adafactor(model: nn.Module, groups: Groups, train: TrainSection) -> Optimizer:
    from transformers.optimization import Adafactor

    # torch's own scales each step by the weights' size, and LoRA's B begins at zero.
    made: Optimizer = Adafactor(groups, scale_parameter=False, relative_step=False)
    return made


def _muon(model: nn.Module, groups: Groups, train: TrainSection) -> Optimizer:
    """Muon for matrices, AdamW for vectors and for what reads and writes tokens."""
    tokens = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tokens |= {id(parameter) for parameter in head.parameters()} if head is not None else set()
    matrices, rest = [], []
    for group in groups:
        mine = [p for p in group["params"] if _is_matrix(p) and id(p) not in tokens]
        others = [p for p in group["params"] if not _is_matrix(p) or id(p) in tokens]
        matrices += [{**group, "params": mine}] if mine else []
        rest += [{**group, "params": others}] if others else []
    parts: list[Optimizer] = []
    if matrices:
        # Steps as long as AdamW's (Liu et al. 2025, arXiv:2502.16982), so that rates carry over.
        parts.append(
            torch.optim.Muon(matrices, momentum=train.beta1, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        parts.append(_adamw(model, rest, train))
    return Together(parts)


OPTIMIZERS: dict[str, Callable[[nn.Module, Groups, TrainSection], Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "paged_adamw_8bit": _paged_adamw_8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
NEED_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion")


class Together(Optimizer):
    """Optimizers of different parameters that step as one, on one state and one list of groups."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each part."""
        for part in self._parts:
            part.step()


LAST_SHARE = 0.2  # of a wsd schedule is decay (Hu et al. 2024, arXiv:2404.06395, section 4)

# Share of the peak rate at a share of the decay (0 just after the warm-up, 1 at the end).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
    "wsd": lambda done: min(1.0, (1.0 - done) / LAST_SHARE),
}


def warmup_share(train: TrainSection, total_steps: int | None) -> float:
    """Share of the run that the warm-up takes; 0 where that is not known."""
    if isinstance(train.warmup_steps, float):
        return train.warmup_steps
    return (train.warmup_steps or 0) / (total_steps or math.inf)


def rate_at(step: int, progress: float, train: TrainSection, warmup: float) -> float:
    """Learning rate of a step.

    Args:
        step: 0-based optimizer step.
        progress: share of the run that is done before this step, 0 to 1.
        train: peak rate, schedule and warm-up steps.
        warmup: share of the run that the warm-up takes, of `warmup_share`.
    """
    peak = train.learning_rate or 0.0
    warmup_steps = train.warmup_steps or 0
    if isinstance(warmup_steps, float):
        if progress < warmup:
            return peak * progress / warmup
    elif step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return peak * SCHEDULES[train.schedule](min(1.0, max(0.0, done)))
