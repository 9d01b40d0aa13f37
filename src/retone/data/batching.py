"""Encoded rows -> optimizer steps of padded micro-batches, in an order fixed by (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from retone.batch import Batch, EncodedRow
from retone.config import TrainSection

BUCKET_BATCHES = 8  # rows of so many batches are sorted by length together


def collate(rows: Sequence[EncodedRow], pad_id: int) -> Batch:
    """Pad rows on the right to the longest of them."""
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)  # [batch, seq]
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    loss_weights = torch.zeros((len(rows), longest), dtype=torch.float32)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = torch.tensor(row.input_ids)
        attention_mask[index, :length] = 1
        loss_weights[index, :length] = torch.tensor(row.loss_weights)
    tokens = sum(len(row.input_ids) for row in rows)
    return Batch(input_ids, attention_mask, loss_weights, len(rows), tokens)


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """Number of leading tokens that all rows share."""
    first, last = min(rows), max(rows)  # whatever these two share, all between them share
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))


def epoch_steps(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each optimizer step of one epoch.

    Rows are shuffled, sorted by length within windows of `BUCKET_BATCHES` batches so that rows of
    a step have similar lengths, and the steps are shuffled again. Every row comes once; only one
    step may hold fewer than `batch_size` rows.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * BUCKET_BATCHES
    steps: list[list[int]] = []
    for start in range(0, len(order), window):
        bucket = sorted(order[start : start + window], key=lambda index: lengths[index])
        steps.extend(bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size))
    shuffled = torch.randperm(len(steps), generator=generator).tolist()
    return [steps[index] for index in shuffled]


def micro_batches(
    rows: Sequence[EncodedRow],
    pad_id: int,
    *,
    most_rows: int | None,
    most_tokens: int | None,
    shared: int = 0,
) -> Iterator[Batch]:
    """The rows of one step as padded micro-batches of about equal size.

    Args:
        rows: in the order in which they are cut; rows of like length should be neighbours.
        pad_id: token that fills up the shorter rows.
        most_rows: rows of a micro-batch; None: all.
        most_tokens: tokens of a micro-batch, padding included; None: any number. A single row may
            have more.
        shared: leading tokens that all rows share and that do not count, computed once.
    """
    if not rows:
        return
    lengths = [len(row.input_ids) - shared for row in rows]
    size = _micro_batch_rows(lengths, most_rows, most_tokens)
    for start in range(0, len(rows), size):
        yield collate(rows[start : start + size], pad_id)


def padded_tokens(
    lengths: Sequence[int], train: TrainSection, steps: Sequence[Sequence[int]]
) -> int:
    """Tokens of these steps' micro-batches, padding included."""
    total = 0
    for step in steps:
        mine = [lengths[row] for row in step]
        size = _micro_batch_rows(mine, train.micro_batch_size, train.micro_batch_tokens)
        parts = [mine[start : start + size] for start in range(0, len(mine), size)]
        total += sum(len(part) * max(part) for part in parts)
    return total


def _micro_batch_rows(
    lengths: Sequence[int], most_rows: int | None, most_tokens: int | None
) -> int:
    """Rows of each micro-batch of one step (see `micro_batches`)."""
    padded = len(lengths) * max(lengths)
    parts = max(math.ceil(len(lengths) / (most_rows or len(lengths))), 1)
    parts = min(len(lengths), max(parts, math.ceil(padded / (most_tokens or padded))))
    return math.ceil(len(lengths) / parts)
