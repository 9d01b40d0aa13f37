"""Losses. Each returns (sum, count); the loop alone divides, once per optimizer step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted next-token cross-entropy, in float32.

    Args:
        logits: [positions, vocabulary].
        targets: int64 [positions], the token that each position has to predict.
        weights: float32 [positions].

    Returns:
        The weighted sum of -log p(target) in nats, and the sum of the weights.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")  # [positions]
    return torch.dot(losses, weights), weights.sum()
