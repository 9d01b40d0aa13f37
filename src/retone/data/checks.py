"""The token ledger: every row and token read is accounted for, per source and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from retone.batch import EncodedRow
from retone.chat_template import RowRejected
from retone.conversation import Conversation, Message
from retone.errors import InputError

KEPT_EXAMPLES = 5  # row numbers kept per reason


class Template(Protocol):
    """What encoding needs of a chat template (see `chat_template.ChatTemplate`)."""

    def encode(
        self, messages: Sequence[Message], *, source: str = "", row: int = 0
    ) -> list[EncodedRow]:
        """Rows whose trained tokens follow the template contract."""
        ...


@dataclass
class Ledger:
    """Counts of one source. Tokens are those of the rendered rows.

    Attributes:
        read: conversations read.
        used: conversations that gave at least one training row.
        trained, masked: tokens of the used rows that enter the loss, and that do not.
        cut_tokens: tokens of whole old turns left out so that a row fits.
        cut_turns: the number of those turns.
        dropped: reason -> conversations left out, with the row numbers of the first few.
        lengths: tokens of each training row.
    """

    path: str
    shape: str = ""
    read: int = 0
    used: int = 0
    trained: int = 0
    masked: int = 0
    cut_tokens: int = 0
    cut_turns: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)

    def drop(self, reason: str, conversation: Conversation, detail: str) -> None:
        """Count one conversation as left out."""
        self.dropped[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < KEPT_EXAMPLES:
            kept.append(f"{conversation.where}: {detail}")

    def as_json(self) -> dict[str, Any]:
        """The entry of `sources` in `--json` and in the run's ledger.json."""
        longest = max(self.lengths, default=0)
        return {
            "path": self.path,
            "shape": self.shape,
            "read": self.read,
            "used": self.used,
            "dropped": dict(self.dropped),
            "examples": self.examples,
            "rows": len(self.lengths),
            "tokens": {"trained": self.trained, "masked": self.masked, "cut": self.cut_tokens},
            "cut_turns": self.cut_turns,
            "longest_row": longest,
        }


def encode_all(
    conversations: Sequence[Conversation],
    template: Template,
    ledger: Ledger,
    max_length: int | None = None,
) -> list[EncodedRow]:
    """Encode conversations and account for every one of them.

    A row longer than `max_length` tokens loses its oldest turns, whole, until it fits; where its
    answer or end token would still be cut it is dropped and counted.
    """
    rows: list[EncodedRow] = []
    for conversation in conversations:
        ledger.read += 1
        try:
            encoded = _encode_to_fit(conversation, template, ledger, max_length)
        except RowRejected as rejected:
            ledger.drop(rejected.reason, conversation, rejected.detail)
            continue
        if not encoded:
            ledger.drop("longer-than-max-length", conversation, f"does not fit {max_length} tokens")
            continue
        ledger.used += 1
        for row in encoded:
            ledger.trained += row.trained
            ledger.masked += len(row.input_ids) - row.trained
            ledger.lengths.append(len(row.input_ids))
        rows.extend(encoded)
    return rows


def require_trained(ledger: Ledger) -> None:
    """InputError, with the reasons, when no token of the data would be trained."""
    if ledger.trained:
        return
    reasons = "; ".join(f"{reason}: {count} rows" for reason, count in ledger.dropped.items())
    examples = "; ".join(places[0] for places in ledger.examples.values())
    raise InputError(
        "no token of the training data would be trained",
        f"{ledger.path}: {ledger.read} rows read; {reasons or 'every turn is masked'} {examples}",
        "mend the rows that are named, or raise data.max_length",
        "nothing-trained",
    )


def _encode_to_fit(
    conversation: Conversation, template: Template, ledger: Ledger, max_length: int | None
) -> list[EncodedRow]:
    """The rows of one conversation, without its oldest turns where it is too long."""
    messages = list(conversation.messages)
    whole = template.encode(messages, source=conversation.source, row=conversation.row)
    fitting = whole
    first = 1 if messages[0].role == "system" else 0
    dropped_turns = 0
    while max_length is not None and any(len(row.input_ids) > max_length for row in fitting):
        start = _next_exchange(messages, first)
        if start is None:
            return []
        dropped_turns += start - first
        del messages[first:start]
        fitting = template.encode(messages, source=conversation.source, row=conversation.row)
    ledger.cut_turns += dropped_turns
    ledger.cut_tokens += sum(len(row.input_ids) for row in whole) - sum(
        len(row.input_ids) for row in fitting
    )
    return fitting


def _next_exchange(messages: Sequence[Message], first: int) -> int | None:
    """Index of the second user turn, from which a shorter conversation can start."""
    for index in range(first + 1, len(messages)):
        if messages[index].role == "user":
            return index
    return None
