"""Losses. Each returns (sum, count); the loop alone divides, once per optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retone.batch import Batch
from retone.models.partial import head_only_at, leading_positions, prefix_cache
from retone.training.kernels import shared_prefix


@dataclass(frozen=True)
class Predictions:
    """What a model says at the positions whose next token has a weight.

    Attributes:
        logits: [positions, vocabulary].
        targets: int64 [positions], the token that each position has to predict.
        weights: float32 [positions].
        rows: int64 [positions], the row of the batch that each position belongs to.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor
    rows: Tensor


def predict(model: Any, batch: Batch, *, fast: bool) -> Predictions:
    """Run the model on a batch.

    `fast` computes a prefix that all rows share once, and sends only the positions that predict a
    trained token through the output head; its plain twin computes everything and then picks.
    """
    shared = shared_prefix(model, batch) if fast else 0
    lead = leading_positions(model)
    # Position i predicts token i + 1, so weights and targets move one to the left.
    weights = F.pad(batch.loss_weights[:, 1:], (0, 1))[:, shared:]
    weights = F.pad(weights, (lead, 0)).flatten()  # [batch * (lead + seq)]
    targets = F.pad(torch.roll(batch.input_ids, -1, dims=1)[:, shared:], (lead, 0)).flatten()
    index = weights.nonzero().squeeze(-1)  # [positions]
    inputs = {
        "input_ids": batch.input_ids[:, shared:],
        "attention_mask": batch.attention_mask,
        "use_cache": shared > 0,
    }
    if shared:
        prefix = batch.input_ids[:1, :shared]
        inputs["past_key_values"] = prefix_cache(model, prefix, batch.rows)
    if fast:
        with head_only_at(getattr(model, "module", model), index):
            logits = model(**inputs).logits[0]
    else:
        logits = model(**inputs).logits.flatten(0, 1)[index]
    rows = index // (lead + batch.input_ids.shape[1] - shared)
    return Predictions(logits, targets[index], weights[index], rows)


def cross_entropy(found: Predictions, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weighted next-token cross-entropy in nats, in float32, of each position, and the weights.

    Args:
        found: what the model says.
        smoothing: share of each target that is spread over all tokens (Szegedy et al. 2015,
            arXiv:1512.00567).

    Returns:
        Two tensors [positions]: weight * -log p(target), and weight.
    """
    losses = F.cross_entropy(
        found.logits.float(), found.targets, reduction="none", label_smoothing=smoothing
    )
    return losses * found.weights, found.weights


def next_token(
    model: Any, batch: Batch, *, fast: bool, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(weighted sum of the losses in nats, sum of the weights) of one batch."""
    losses, weights = cross_entropy(predict(model, batch, fast=fast), smoothing)
    return losses.sum(), weights.sum()


Loss = Callable[..., tuple[Tensor, Tensor]]

# By `[objective] kind`. Both ask for the next token; which tokens count is the rows' own: answers
# of conversations, all of a text.
LOSSES: dict[str, Loss] = {"sft": next_token, "text": next_token}


def row_losses(model: Any, batch: Batch, *, fast: bool) -> Tensor:
    """The weighted sum of the losses of each row, in nats: [batch]."""
    found = predict(model, batch, fast=fast)
    losses, _ = cross_entropy(found)
    return losses.new_zeros(batch.rows).index_add_(0, found.rows, losses)
