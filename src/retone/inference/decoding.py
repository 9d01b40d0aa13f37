"""The decoding loop: rows join, take a step together, and leave as they finish.

Rows need not begin or end together (continuous batching; Yu et al. 2022, Orca, OSDI): the keys and
values of a row that joins are padded to those of the others, and a row that is finished costs
nothing any more. Rows of several adapters and of the base go through it together where all are
plain LoRA; else those of the tuned and of the base model take their steps side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retone.data.batching import common_prefix
from retone.inference.row_lora import RowLora
from retone.inference.sampling import Picker, Sampling, TokenChance, chance
from retone.models.partial import (
    base_or_tuned,
    forward_last,
    has_plain_cache,
    joined,
    learned_cache,
    prefix_cache,
    without_leading,
)

TUNED = "default"  # peft's name of the adapter that a run trained
Side = Callable[[Sequence[str | None]], AbstractContextManager[None]]


def adapter_of(*, tuned: bool) -> str | None:
    """What rows of the tuned model, or of the base model, name as their adapter."""
    return TUNED if tuned else None


@dataclass(eq=False)
class Row:
    """One answer that is being written.

    Attributes:
        prompt: ids before it.
        sampling: how its tokens are picked.
        adapter: whose model writes it; None is the base model.
        top: likeliest tokens to note beside each of its own; None notes nothing.
        ids: what is written so far.
        chances: one for each of `ids`, where `top` asks for them.
        finished: nothing more comes.
        stopped: it ended by itself.
        picker: draws its tokens; made when the first is picked.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = TUNED
    top: int | None = None
    ids: list[int] = field(default_factory=list)
    chances: list[TokenChance] = field(default_factory=list)
    finished: bool = False
    stopped: bool = False
    picker: Picker | None = None


class Decoder:
    """Writes many answers at once.

    Args:
        model: a causal language model; inside `with model.disable_adapter()` it is the base. Where
            it is more than plain LoRA (`RowLora.mixes`), rows name `TUNED` or None and no other.
        stop_ids: tokens that end an answer.
        pad_id: stands where nothing is.
    """

    def __init__(self, model: Any, stop_ids: frozenset[int], pad_id: int) -> None:
        self._model = model
        self._stop_ids = stop_ids
        self._pad_id = pad_id
        self._context = getattr(model.config, "max_position_embeddings", 1 << 30)
        self._groups: dict[str | None, _Group] = {}
        self.read_adapters()

    @property
    def rows(self) -> list[Row]:
        """The rows that are being written."""
        return [row for group in self._groups.values() for row in group.rows]

    @property
    def open(self) -> bool:
        """Whether rows may join now: not in the middle of a model with a sliding window."""
        return not self.rows or has_plain_cache(self._model)

    def read_adapters(self) -> None:
        """Take up the adapters that the model has now; the rows go on."""
        self._lora = RowLora(self._model) if RowLora.mixes(self._model) else None

    def clear(self) -> None:
        """Let all rows go, finished or not."""
        self._groups.clear()

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of rows and pick the first token of each."""
        for key in dict.fromkeys(self._key(row) for row in rows):
            group = self._groups.setdefault(key, _Group(self._model, self._pad_id, self._side))
            fresh = [row for row in rows if self._key(row) == key]
            self._pick(fresh, group.join(fresh))

    @torch.no_grad()
    def step(self) -> None:
        """Write one more token of every row; rows that were finished are gone before that."""
        for key, group in list(self._groups.items()):
            group.drop()
            if group.rows:
                self._pick(group.rows, group.step())
            else:
                del self._groups[key]

    def _key(self, row: Row) -> str | None:
        return None if self._lora else row.adapter

    def _side(self, adapters: Sequence[str | None]) -> AbstractContextManager[None]:
        """Inside the block the rows of a group are those of their adapters."""
        if self._lora:
            return self._lora.of(adapters)
        return base_or_tuned(self._model, tuned=adapters[0] is not None)

    def _pick(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Append to every row the token that its logits [rows, vocabulary] give."""
        logits = logits.float()
        likeliest = logits.argmax(-1).tolist()
        for row, best, own in zip(rows, likeliest, logits, strict=True):
            if row.picker is None:
                row.picker = Picker(row.sampling, own.device)
            if not row.picker.plain:
                best = row.picker.pick((*row.prompt, *row.ids), own)
            row.ids.append(best)
            if row.top is not None:
                row.chances.append(chance(own, best, row.top))
            row.stopped = best in self._stop_ids
            room = self._context - len(row.prompt)
            row.finished = row.stopped or len(row.ids) >= min(row.sampling.max_new_tokens, room)


class _Group:
    """Rows that go through the model together: their keys and values, and which of them count."""

    def __init__(self, model: Any, pad_id: int, side: Side) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._pad_id = pad_id
        self._side = side
        self._cache: Any = None
        self._mask = torch.empty(0)  # int64 [rows, seq], 0 where padded

    def join(self, rows: Sequence[Row]) -> Tensor:
        """Logits [rows, vocabulary] behind the prompts of rows, which are in the group then."""
        adapters = [row.adapter for row in rows]
        with self._side(adapters):
            cache, mask, logits = self._read(
                [row.prompt for row in rows], alike=len(set(adapters)) < 2
            )
        if self.rows:
            cache, mask = joined(self._cache, self._mask, cache, mask)
        self._cache, self._mask = cache, mask
        self.rows = [*self.rows, *rows]
        return logits

    def step(self) -> Tensor:
        """Logits [rows, vocabulary] behind the last token of every row."""
        last = torch.tensor([row.ids[-1:] for row in self.rows], device=self._mask.device)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        with self._side([row.adapter for row in self.rows]):
            return forward_last(self._model, last, self._mask, self._cache)

    def drop(self) -> None:
        """Let the finished rows go, and the padding that none of the others needs."""
        kept = [at for at, row in enumerate(self.rows) if not row.finished]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in kept]
        if not kept:
            return
        index = torch.tensor(kept, device=self._mask.device)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        if has_plain_cache(self._model):
            self._mask = without_leading(self._cache, self._mask)

    def _read(
        self, prompts: Sequence[tuple[int, ...]], *, alike: bool
    ) -> tuple[Any, Tensor, Tensor]:
        """Cache, mask and last logits of prompts; what alike rows begin with is read once."""
        shared = self._shared(prompts) if alike else 0
        ids, mask = self._padded(prompts, shared)
        if shared:
            cache = prefix_cache(self._model, ids[:1, :shared], len(prompts))
        else:
            cache = learned_cache(self._model, len(prompts))
            learned = mask.new_ones(len(prompts), cache.get_seq_length())
            mask = torch.cat([learned, mask], dim=1)
        logits = forward_last(self._model, ids[:, shared:], mask, cache)
        return cache, mask, logits

    def _shared(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Leading tokens that are read once for all rows; the last token is each row's own."""
        if len(prompts) < 2 or not has_plain_cache(self._model):
            return 0
        return min(common_prefix(prompts), min(map(len, prompts)) - 1)

    def _padded(self, prompts: Sequence[Sequence[int]], shared: int) -> tuple[Tensor, Tensor]:
        """Ids and mask, padded between the shared prefix and the rest: int64 [rows, seq]."""
        longest = max(map(len, prompts))
        ids, mask = [], []
        for prompt in prompts:
            missing = longest - len(prompt)
            ids.append([*prompt[:shared], *[self._pad_id] * missing, *prompt[shared:]])
            mask.append([1] * shared + [0] * missing + [1] * (len(prompt) - shared))
        device = self._model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
