"""Judging a model of plain text: how likely held-out text is, and what it goes on with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch

from retone.batch import EncodedRow
from retone.chat_template import RowRejected
from retone.conversation import Conversation, Document, Message
from retone.data.batching import micro_batches
from retone.evaluation.candidates import MOST_TOKENS, Candidate
from retone.evaluation.metrics import Likelihood
from retone.inference.engine import Engine
from retone.training.losses import row_losses

BEGINNING = 16  # words that are shown to a model
METRICS = ("perplexity", "bits_per_byte")
_WORDS = re.compile(rf"\s*(?:\S+\s+){{{BEGINNING}}}")


def in_two(texts: Sequence[Document]) -> list[Conversation]:
    """Each text as its first words and the rest: joined they are the text."""
    found = []
    for text in texts:
        first = _WORDS.match(text.text)
        at = len(first[0].rstrip()) if first else len(text.text)
        turns = Message("user", text.text[:at]), Message("assistant", text.text[at:])
        found.append(Conversation(turns, text.source, text.row, text.extra))
    return found


def text_candidates(engine: Engine, *, base: str, tuned: str) -> list[Candidate]:
    """The model before and after training; arguments as for `candidates.candidates`."""

    def candidate(name: str, label: str, what: str, identity: str, after: bool) -> Candidate:
        likelihood: Callable[..., list[Likelihood]] = partial(text_likelihoods, engine, tuned=after)
        respond = partial(engine.continued, tuned=after)
        return Candidate(name, label, what, respond, f"{identity} goes on", likelihood)

    return [
        candidate("base", "base model", "the untuned model", base, False),
        candidate("tuned", "tuned", "the model after training", tuned, True),
    ]


@torch.no_grad()
def text_likelihoods(
    engine: Engine, rows: Sequence[Conversation], *, tuned: bool
) -> list[Likelihood]:
    """(nats, tokens, bytes) of each whole text but its first token under the model.

    A text longer than `MOST_TOKENS`, or than the model can read, is read in pieces. One without two
    tokens counts as nothing: (0, 0, 0).
    """
    context = getattr(engine.model.config, "max_position_embeddings", MOST_TOKENS)
    pieces: list[EncodedRow] = []
    owners: list[int] = []
    for number, row in enumerate(rows):
        text = row.question + row.answer
        try:
            found = engine.template.encode_document(text, min(MOST_TOKENS, context))
        except RowRejected:
            continue
        pieces += found
        owners += [number] * len(found)
    order = sorted(range(len(pieces)), key=lambda at: len(pieces[at].input_ids))
    batches = micro_batches(
        [pieces[at] for at in order],
        engine.template.stop_id,
        most_rows=engine.batch_size,
        most_tokens=MOST_TOKENS,
    )
    nats = [0.0] * len(rows)
    spent: list[float] = []
    with engine.answering(tuned=tuned):
        for batch in batches:
            spent += row_losses(engine.model, batch.to(engine.model.device), fast=True).tolist()
    tokens = [0] * len(rows)
    for at, cost in zip(order, spent, strict=True):
        nats[owners[at]] += cost
        tokens[owners[at]] += pieces[at].trained
    sizes = [len((row.question + row.answer).encode()) for row in rows]
    return list(zip(nats, tokens, sizes, strict=True))
