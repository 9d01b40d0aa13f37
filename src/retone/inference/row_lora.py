"""Whose adapter counts, row by row: the tuned and the base model in one pass.

peft can mix adapters in a batch as well, but splits every layer's input, and switching an adapter
off walks through the whole model: either is slower than writing a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from torch import Tensor


class RowLora:
    """Plain LoRA whose part is added for some rows of a batch.

    y = x W^T + m (x A^T) (s B)^T with the row's m 1 or 0, in the type of the frozen weights, as the
    fused training step does it. The plain twin is peft's own forward pass; the adapter is read when
    this is made.

    Args:
        model: one for which `mixes` is true.
    """

    def __init__(self, model: Any) -> None:
        self._counts: Tensor | None = None  # [rows, 1, 1], or None where every row counts
        self._forwards = [
            (layer, self._forward(layer, model.dtype))
            for layer in model.modules()
            if isinstance(layer, LoraLayer)
        ]

    @staticmethod
    def mixes(model: Any) -> bool:
        """Whether a model is a base and plain LoRA on linear layers, and nothing else."""
        if not isinstance(model, PeftModel) or "disable_adapter" in vars(model):
            return False
        config = model.active_peft_config
        if config.peft_type != PeftType.LORA or (
            config.use_dora
            or config.bias != "none"
            or config.modules_to_save
            or config.trainable_token_indices
        ):
            return False
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        return all(
            list(layer.active_adapters) == [model.active_adapter]
            and model.active_adapter in layer.lora_A
            and not layer.merged
            for layer in layers
        )

    @contextmanager
    def of(self, tuned: Sequence[bool]) -> Iterator[None]:
        """Inside the block the adapter counts for the rows of a batch that are tuned ones."""
        self._counts = None
        if not all(tuned):
            device = self._forwards[0][0].base_layer.weight.device
            self._counts = torch.tensor(tuned, device=device).view(-1, 1, 1)
        only_base = not any(tuned)
        # Training has its own way through these layers, which must be there again afterwards.
        before = [vars(layer).get("forward") for layer, _ in self._forwards]
        for layer, forward in self._forwards:
            layer.forward = layer.base_layer.forward if only_base else forward
        try:
            yield
        finally:
            for (layer, _), own in zip(self._forwards, before, strict=True):
                if own is None:
                    del layer.forward  # the class's own method shows again
                else:
                    layer.forward = own

    def _forward(self, layer: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        name = layer.active_adapters[0]
        a = layer.lora_A[name].weight.detach().to(dtype)  # [rank, in]
        b = (layer.lora_B[name].weight.detach() * layer.scaling[name]).to(dtype)  # [out, rank]
        base = layer.base_layer

        def forward(x: Tensor) -> Tensor:
            x = x.to(dtype)  # a norm that is kept in float32 speaks in float32
            narrow = torch.nn.functional.linear(x, a)  # [rows, seq, rank]
            if self._counts is not None:
                narrow = narrow * self._counts
            y: Tensor = base(x)
            return y + torch.nn.functional.linear(narrow, b)

        return forward
