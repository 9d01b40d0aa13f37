"""Who answers the held-out rows, each a `Responder`; answers cached by content, as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from retone.batch import EncodedRow
from retone.chat_template import RowRejected
from retone.conversation import Conversation, Message
from retone.data.batching import common_prefix, micro_batches
from retone.evaluation.metrics import Likelihood
from retone.inference.engine import Engine
from retone.inference.sampling import Answer, Messages, Responder, Sampling
from retone.run_dir import fingerprint
from retone.training.losses import row_losses

MOST_TOKENS = 2048  # of a batch of references: bounds the memory of its logits

Tick = Callable[[int, int], None]  # rows answered, rows in all
Rephrase = Callable[[Messages], Messages]


@dataclass(frozen=True)
class Candidate:
    """Somebody who is asked the held-out rows.

    Attributes:
        name: key in tables and JSON.
        label: name for people.
        what: one sentence on how it answers.
        respond: its answers.
        identity: changes when its answers could; empty for answers not worth keeping.
        likelihood: rows -> (nats, tokens, bytes) of their references; None for one without a model.
    """

    name: str
    label: str
    what: str
    respond: Responder
    identity: str = ""
    likelihood: Callable[[Sequence[Conversation]], list[Likelihood]] | None = None


def copy_prompt(prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
    """The user's own words given back: what a rewrite has to beat."""
    answers = []
    for messages in prompts:
        said = [message.content for message in messages if message.role == "user"]
        answers.append(Answer(said[-1] if said else "", 0, True))
    return answers


def candidates(
    engine: Engine, *, task: str, instruction: str, base: str, tuned: str
) -> list[Candidate]:
    """Everyone who is asked, in the order of the tables.

    Args:
        engine: the model with its adapter.
        task: copying is a baseline of `rewrite` alone.
        instruction: system prompt of the prompted baseline.
        base, tuned: what identifies the base weights and the tuned ones, with their settings.
    """

    def instructed(messages: Messages) -> Messages:
        turns = [message for message in messages if message.role != "system"]
        first = [Message("system", instruction), *turns]
        try:
            engine.template.prompt_ids(first)
        except RowRejected:  # a template without a system turn
            return [replace(turns[0], content=f"{instruction}\n\n{turns[0].content}"), *turns[1:]]
        return first

    def prompted(prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
        return engine.base([instructed(messages) for messages in prompts], sampling)

    def likelihood(tuned: bool, rephrase: Rephrase = tuple) -> Callable[..., list[Likelihood]]:
        return lambda rows: reference_likelihoods(engine, rows, tuned=tuned, rephrase=rephrase)

    written = fingerprint(base, instruction)
    asked = [
        Candidate(
            "base",
            "base model",
            "the untuned model, asked as the tuned one is",
            engine.base,
            base,
            likelihood(False),
        ),
        Candidate(
            "prompted",
            "base + instruction",
            "the untuned model with a written style instruction",
            prompted,
            written,
            likelihood(False, instructed),
        ),
        Candidate(
            "tuned", "tuned", "the model after training", engine.tuned, tuned, likelihood(True)
        ),
    ]
    copy = Candidate("copy", "prompt copied", "the prompt given back unchanged", copy_prompt)
    return [copy, *asked] if task == "rewrite" else asked


def answer_all(
    candidate: Candidate,
    prompts: Sequence[Messages],
    sampling: Sampling,
    *,
    folder: Path,
    chunk: int,
    tick: Tick,
) -> list[Answer]:
    """The candidate's answers; those given before are read, new ones are kept as they come.

    Args:
        candidate: who is asked.
        prompts: what is asked.
        sampling: how tokens are picked.
        folder: where answers are kept, one file an identity.
        chunk: prompts asked together, then written.
        tick: told after each chunk.
    """
    if not candidate.identity:
        return candidate.respond(prompts, sampling)
    file = folder / f"{fingerprint(candidate.identity, asdict(sampling))[:24]}.jsonl"
    known = _read_kept(file)
    keys = [fingerprint([message.as_dict() for message in messages]) for messages in prompts]
    open_ = [index for index, key in enumerate(keys) if key not in known]
    # Prompts of one length together, so that little is padded.
    open_.sort(key=lambda index: sum(len(message.content) for message in prompts[index]))
    file.parent.mkdir(parents=True, exist_ok=True)
    tick(len(prompts) - len(open_), len(prompts))
    for start in range(0, len(open_), chunk):
        picked = open_[start : start + chunk]
        answers = candidate.respond([prompts[index] for index in picked], sampling)
        lines = []
        for index, answer in zip(picked, answers, strict=True):
            known[keys[index]] = answer
            lines.append(json.dumps({"key": keys[index], **asdict(answer)}) + "\n")
        with file.open("a", encoding="utf-8") as kept:
            kept.write("".join(lines))
        tick(len(prompts) - len(open_) + start + len(picked), len(prompts))
    return [known[key] for key in keys]


def _read_kept(file: Path) -> dict[str, Answer]:
    """Answers of an earlier sitting; a line that a kill cut short is not one."""
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = row.pop("key")
        known[key] = Answer(**row)
    return known


@torch.no_grad()
def reference_likelihoods(
    engine: Engine, rows: Sequence[Conversation], *, tuned: bool, rephrase: Rephrase
) -> list[Likelihood]:
    """(nats, tokens, bytes) of each row's reference answer and end token under the model.

    A row that the template cannot encode counts as nothing: (0, 0, 0).
    """
    found: list[Likelihood] = [(0.0, 0, 0)] * len(rows)
    encoded: dict[int, EncodedRow] = {}
    for index, row in enumerate(rows):
        earlier = [replace(message, loss_weight=0.0) for message in rephrase(row.prompt)]
        try:
            encoded[index] = engine.template.encode([*earlier, Message("assistant", row.answer)])[
                -1
            ]
        except RowRejected:
            continue
    order = sorted(encoded, key=lambda index: len(encoded[index].input_ids))
    nats: list[float] = []
    batches = micro_batches(
        [encoded[index] for index in order],
        engine.template.stop_id,
        most_rows=engine.batch_size,
        most_tokens=MOST_TOKENS,
        shared=common_prefix([row.input_ids for row in encoded.values()]) if encoded else 0,
    )
    with engine.answering(tuned=tuned):
        for batch in batches:
            nats += row_losses(engine.model, batch.to(engine.model.device), fast=True).tolist()
    for index, spent in zip(order, nats, strict=True):
        found[index] = (spent, encoded[index].trained, len(rows[index].answer.encode()))
    return found
