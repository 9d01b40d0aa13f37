"""Which numbers a training step computes in, once it is known what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")

# Parameters of adapters, which cast what they read by themselves.
_ADAPTERS = (".lora_", ".ia3_", ".bottleneck_", "prompt_encoder.")


def mixed_precision(model: Any) -> Literal["no", "bf16", "fp16"]:
    """How the products of a step are to be cast automatically.

    Weights that are trained are in float32. Frozen half-precision layers around trained adapters
    need no casts; whole trained layers among them do, and so do the float32 norms of a model in
    float16, whose gradients have to be scaled as well (Micikevicius et al. 2017, arXiv:1710.03740).
    """
    if model.config.dtype == torch.float16:
        return "fp16"
    if model.config.dtype == torch.bfloat16 and any(
        parameter.requires_grad and not any(part in name for part in _ADAPTERS)
        for name, parameter in model.named_parameters()
    ):
        return "bf16"
    return "no"


def in_precision(
    function: Callable[..., T], precision: str, device: torch.device
) -> Callable[..., T]:
    """The function with its products cast automatically."""
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def cast(*arguments: Any, **named: Any) -> T:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return function(*arguments, **named)

    return cast
