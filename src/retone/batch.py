"""The typed contract between data, training and inference: `EncodedRow` and `Batch`.

Loads without torch: tensors are named here and made in `data/batching.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EncodedRow:
    """One training row.

    Attributes:
        input_ids: token ids of the whole row, equal to what the model's own template gives.
        loss_weights: one per token; the weight with which *predicting that token* enters the
            loss. 0 masks. The first is always 0: nothing predicts it.
        source: where the row came from, for the ledger and for messages.
        row: 1-based row number in that source.
    """

    input_ids: tuple[int, ...]
    loss_weights: tuple[float, ...]
    source: str = ""
    row: int = 0

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.loss_weights):
            raise ValueError(f"{len(self.input_ids)} ids but {len(self.loss_weights)} weights")

    @property
    def trained(self) -> int:
        """Number of tokens that enter the loss."""
        return len(self.loss_weights) - self.loss_weights.count(0.0)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length.

    Attributes:
        input_ids: int64 [batch, seq].
        attention_mask: int64 [batch, seq], 1 for real tokens.
        loss_weights: float32 [batch, seq], 0 for padding and masked tokens.
        rows: real rows in the batch.
        tokens: real tokens in the batch.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    loss_weights: torch.Tensor
    rows: int
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.loss_weights.to(device),
            self.rows,
            self.tokens,
        )
