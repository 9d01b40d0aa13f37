"""Noise on the embeddings while training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def noisy_embeddings(model: Any, alpha: float) -> Iterator[None]:
    """Inside the block, embeddings get uniform noise while the model is in training mode.

    The noise reaches alpha / sqrt(tokens * hidden) (NEFTune, Jain et al. 2023, arXiv:2310.05914);
    `tokens` are those of the padded row. 0 adds nothing.
    """
    if not alpha:
        yield
        return

    def add(module: nn.Module, _: Any, embedded: Tensor) -> Tensor:  # [batch, seq, hidden]
        if not module.training:
            return embedded
        most = alpha / math.sqrt(embedded.shape[1] * embedded.shape[2])
        return embedded + torch.empty_like(embedded).uniform_(-most, most)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
