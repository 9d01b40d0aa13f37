"""What is trained: a table from `[method] kind` to the function that prepares a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from retone.config import MethodSection
from retone.errors import InputError


@dataclass(frozen=True)
class Parameters:
    """How much of a model is trained."""

    trained: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trained / self.total
        return f"{self.trained:,} of {self.total:,} parameters are trained ({share:.2f} %)"


def count_parameters(model: nn.Module) -> Parameters:
    """Trained and total parameters; tied weights count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Parameters(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))


def lora(model: Any, method: MethodSection) -> Any:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685); weights of the base are frozen.

    The adapters are kept in float32 whatever the base's type: AdamW's small updates would be lost
    in bfloat16's 8 bits. Raises InputError when the targets match no module.
    """
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha or 2 * method.rank,
        lora_dropout=method.dropout,
        target_modules=method.targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            "method.targets matches no module of the model",
            f"{method.targets!r}: {str(error).splitlines()[0]}",
            '--set method.targets="all-linear"',
            "no-target",
        ) from error


METHODS: dict[str, Callable[[Any, MethodSection], Any]] = {"lora": lora}
