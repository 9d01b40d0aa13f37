"""The token ledger: every row and token read is accounted for, per source and reason."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from retone.batch import EncodedRow
from retone.chat_template import RowRejected, TrainOn
from retone.conversation import Conversation, Document, Message, Preference
from retone.data.private import veiled

KEPT_EXAMPLES = 5  # row numbers kept per reason
TOGETHER = 128  # conversations that are tokenised in one call
THREADS = min(4, os.cpu_count() or 1)  # that do so; what they do in Python they do in turn

Encoded = list[EncodedRow] | RowRejected


class Template(Protocol):
    """What encoding needs of a chat template (see `chat_template.ChatTemplate`)."""

    stop_ids: frozenset[int]

    def encode_batch(
        self, conversations: Sequence[Conversation], *, train_on: TrainOn = "all"
    ) -> list[Encoded]:
        """For each conversation, rows that follow the template contract, or why there are none."""
        ...

    def encode_document(
        self, text: str, max_length: int, *, source: str = "", row: int = 0
    ) -> list[EncodedRow]:
        """Rows of at most `max_length` tokens in which every token is trained."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool,
    ) -> str:
        """The text of messages; RowRejected where the template refuses them."""
        ...

    def strips(self, messages: Sequence[Message]) -> bool:
        """Whether encoding takes white space away from an answer of these messages."""
        ...


@dataclass
class Ledger:
    """Counts of one source. Tokens are those of the rendered rows.

    Attributes:
        read: conversations read.
        used: conversations that are trained on, validate or test.
        validated, tested: those of them that validate, and that test.
        trained, masked: tokens of the used rows that enter the loss, and that do not.
        cut_tokens: tokens of whole old turns left out so that a row fits.
        cut_turns: the number of those turns.
        stripped: used conversations whose answers lost white space around them, because template
            or tokenizer do not keep it.
        dropped: reason -> conversations left out, with the row numbers of the first few.
        lengths: tokens of each training row.
        ended: training rows whose last trained token is one that ends an answer.
    """

    path: str
    shape: str = ""
    read: int = 0
    used: int = 0
    validated: int = 0
    tested: int = 0
    trained: int = 0
    masked: int = 0
    cut_tokens: int = 0
    cut_turns: int = 0
    stripped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    ended: int = 0

    def drop(self, reason: str, sample: Conversation | Preference | Document, detail: str) -> None:
        """Count one sample as left out."""
        self.dropped[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < KEPT_EXAMPLES:
            kept.append(f"{sample.source}, row {sample.row}: {veiled(detail)}")

    def as_json(self) -> dict[str, Any]:
        """The entry of `sources` in `--json` and in the run's ledger.json."""
        longest = max(self.lengths, default=0)
        return {
            "path": self.path,
            "shape": self.shape,
            "read": self.read,
            "used": self.used,
            "validated": self.validated,
            "tested": self.tested,
            "dropped": dict(self.dropped),
            "examples": self.examples,
            "rows": len(self.lengths),
            "ended": self.ended,
            "tokens": {"trained": self.trained, "masked": self.masked, "cut": self.cut_tokens},
            "cut_turns": self.cut_turns,
            "stripped": self.stripped,
            "longest_row": longest,
        }


def encode_each(
    samples: Iterable[Conversation | Document],
    template: Template,
    ledger: Ledger,
    max_length: int | None = None,
    train_on: TrainOn = "all",
) -> Iterator[list[EncodedRow]]:
    """The rows of each sample, none where it is left out; each sample is accounted for.

    Conversations are encoded as they come, a few hundred at a time. A row longer than `max_length`
    tokens loses its oldest turns, whole, until it fits; where its answer or end token would still
    be cut it is dropped and counted. Documents become rows of `max_length` tokens.
    """
    for together, chats in _encoded_ahead(samples, template, train_on):
        encoded = iter(chats)
        for sample in together:
            if isinstance(sample, Conversation):
                rows = next(encoded)
                if not isinstance(rows, RowRejected) and max_length is not None:
                    rows = _cut_to_fit(sample, rows, template, ledger, max_length, train_on)
            else:
                rows = _document_rows(sample, template, max_length)
            yield _accounted(sample, rows, template, ledger)


def _encoded_ahead(
    samples: Iterable[Conversation | Document], template: Template, train_on: TrainOn
) -> Iterator[tuple[Sequence[Conversation | Document], list[Encoded]]]:
    """A few hundred samples at a time, and what each conversation among them is encoded to.

    The tokenizer lets go of the interpreter while it works, so other threads render and verify.
    """
    waiting = iter(samples)

    def submit() -> bool:
        together = list(islice(waiting, TOGETHER))
        chats = [sample for sample in together if isinstance(sample, Conversation)]
        if together:
            ahead.append((together, pool.submit(template.encode_batch, chats, train_on=train_on)))
        return bool(together)

    ahead: deque[tuple[Sequence[Conversation | Document], Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        while len(ahead) <= THREADS and submit():
            pass
        while ahead:
            together, encoded = ahead.popleft()
            found = encoded.result()
            submit()
            yield together, found


def _document_rows(sample: Document, template: Template, max_length: int | None) -> Encoded:
    # No token is shorter than a byte; the tokenizer may add one at either end.
    length = max_length or len(sample.text.encode("utf-8", "surrogatepass")) + 2
    try:
        return template.encode_document(sample.text, length, source=sample.source, row=sample.row)
    except RowRejected as rejected:
        return rejected


def _accounted(
    sample: Conversation | Document, rows: Encoded, template: Template, ledger: Ledger
) -> list[EncodedRow]:
    """The rows of one sample that are used, counted with everything that is not."""
    ledger.read += 1
    if isinstance(rows, RowRejected):
        ledger.drop(rows.reason, sample, rows.detail)
        return []
    ledger.used += 1
    ledger.stripped += isinstance(sample, Conversation) and template.strips(sample.messages)
    for row in rows:
        trained = row.trained
        ledger.trained += trained
        ledger.masked += len(row.input_ids) - trained
        ledger.lengths.append(len(row.input_ids))
    return rows


def _cut_to_fit(
    conversation: Conversation,
    whole: list[EncodedRow],
    template: Template,
    ledger: Ledger,
    max_length: int,
    train_on: TrainOn,
) -> Encoded:
    """The rows of one conversation, without its oldest turns where they are too long."""
    messages = list(conversation.messages)
    first = 1 if messages[0].role == "system" else 0
    fitting: Encoded = whole
    turns = 0
    while not isinstance(fitting, RowRejected) and _longest(fitting) > max_length:
        start = _next_exchange(messages, first)
        if start is None:
            return RowRejected("longer-than-max-length", f"does not fit {max_length} tokens")
        turns += start - first
        del messages[first:start]
        shorter = replace(conversation, messages=tuple(messages))
        (fitting,) = template.encode_batch([shorter], train_on=train_on)
    if not isinstance(fitting, RowRejected):
        ledger.cut_turns += turns
        ledger.cut_tokens += _tokens(whole) - _tokens(fitting)
    return fitting


def _longest(rows: Sequence[EncodedRow]) -> int:
    return max(len(row.input_ids) for row in rows)


def _tokens(rows: Sequence[EncodedRow]) -> int:
    return sum(len(row.input_ids) for row in rows)


def _next_exchange(messages: Sequence[Message], first: int) -> int | None:
    """Index of the second user turn, from which a shorter conversation can start."""
    for index in range(first + 1, len(messages)):
        if messages[index].role == "user":
            return index
    return None
