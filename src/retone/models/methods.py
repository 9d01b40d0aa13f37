"""What is trained: a table from `[method] kind` to the function that prepares a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from retone.config import MethodSection
from retone.models import adapters, bottleneck, layers

Prepare = Callable[[Any, MethodSection], Any]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        prepare: a loaded base model -> the model with what is trained, and nothing else, requiring
            gradients.
        saved_as: what a tuned model is on disk: a peft adapter, a whole model, or bottlenecks.
        merges: the adapter can be added to the weights, so that the model is a plain one again.
    """

    prepare: Prepare
    saved_as: Literal["adapter", "model", "bottleneck"]
    merges: bool


METHODS: dict[str, Method] = {
    "lora": Method(adapters.lora, "adapter", merges=True),
    "full": Method(layers.full, "model", merges=False),
    "last_layers": Method(layers.last_layers, "model", merges=False),
    "unfreeze": Method(layers.full, "model", merges=False),
    "ia3": Method(adapters.ia3, "adapter", merges=True),
    "prefix": Method(adapters.prefix, "adapter", merges=False),
    "prompt": Method(adapters.prompt, "adapter", merges=False),
    "bottleneck": Method(bottleneck.add_bottlenecks, "bottleneck", merges=False),
}


@dataclass(frozen=True)
class Parameters:
    """How much of a model is trained."""

    trained: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trained / self.total
        return f"{self.trained:,} of {self.total:,} parameters are trained ({share:.2f} %)"


def count_parameters(model: nn.Module) -> Parameters:
    """Trained and total parameters; tied weights count once, packed 4-bit weights as unpacked."""
    sizes = [(_size(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return Parameters(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))


def _size(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # bitsandbytes keeps two weights in a byte
    return packed.shape.numel() if packed is not None else parameter.numel()
