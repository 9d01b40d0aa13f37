"""Fast paths of the loop. Each has a plain twin (`train.fast = false`) and a parity test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from retone.batch import Batch
from retone.models.partial import has_plain_cache


class FusedLora(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T as one autograd node.

    The plain path runs the adapter in its own float32 passes over x and y; here the products are
    done in x's type and added in place, and only x and the narrow x A^T are kept for backward.
    Shapes: x [rows, in], W [out, in], A [rank, in], B [out, rank].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """The layer's output, in the type of x."""
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        narrow = x @ low_a.t()  # [rows, rank]
        ctx.save_for_backward(x, weight, low_a, low_b, narrow)
        ctx.scale = scale
        ctx.types = (a.dtype, b.dtype)
        return (x @ weight.t()).addmm_(narrow, low_b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B; the frozen weight has none."""
        (grad,) = gradients  # [rows, out]
        x, weight, a, b, narrow = ctx.saved_tensors
        grad_narrow = (grad @ b).mul_(ctx.scale)  # [rows, rank]
        grad_x = (grad @ weight).addmm_(grad_narrow, a) if ctx.needs_input_grad[0] else None
        grad_a = (grad_narrow.t() @ x).to(ctx.types[0])
        grad_b = (grad.t() @ narrow).mul_(ctx.scale).to(ctx.types[1])
        return grad_x, None, grad_a, grad_b, None


def _fused_forward(layer: LoraLinear, name: str) -> Callable[[Tensor], Tensor]:
    base, scale = layer.base_layer, layer.scaling[name]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight

    def forward(x: Tensor) -> Tensor:
        # A norm that is trained, or kept in float32, speaks in float32.
        flat = x.flatten(0, -2).to(base.weight.dtype)
        y: Tensor = FusedLora.apply(flat, base.weight, a, b, scale)  # type: ignore[no-untyped-call]
        if base.bias is not None:
            y = y + base.bias
        return y.view(*x.shape[:-1], y.shape[-1])  # -1 cannot be told where x has no position

    return forward


def _fusable(layer: nn.Module) -> bool:
    if not isinstance(layer, LoraLinear) or type(layer.base_layer) is not nn.Linear:
        return False
    if layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    plain = name in layer.lora_A and not layer.use_dora.get(name, False)
    return plain and isinstance(layer.lora_dropout[name], nn.Identity)


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[int]:
    """Run plain LoRA layers by `FusedLora` inside the block; yields how many."""
    layers = [layer for layer in model.modules() if _fusable(layer)]
    for layer in layers:
        assert isinstance(layer, LoraLinear)
        layer.forward = _fused_forward(layer, layer.active_adapters[0])
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # the class's own method shows again


def shared_prefix(model: Any, batch: Batch) -> int:
    """Number of leading tokens that may be computed once for all rows of the batch.

    Rows that start with the same system prompt share keys and values there. 0 where that would not
    be exact: a trained token in the prefix, a cache that forgets (sliding windows), layers that are
    computed again in the backward pass and keep no cache, noise that is each row's own, or a
    wrapped model that expects one forward per backward (DDP).
    """
    if batch.rows < 2 or hasattr(model, "module") or not has_plain_cache(model):
        return 0
    if model.training and (model.is_activation_checkpointing or _has_noise(model)):
        return 0
    same = (batch.input_ids == batch.input_ids[:1]).all(dim=0) & batch.attention_mask.bool().all(0)
    shared = int(same.long().cumprod(dim=0).sum())
    trained = batch.loss_weights.any(dim=0).long()
    # The position before a trained token has to stay outside: its logits are needed per row.
    return max(0, min(shared, int(trained.argmax()) - 1)) if bool(trained.any()) else 0


def _has_noise(model: Any) -> bool:
    return bool(model.get_input_embeddings()._forward_hooks)
