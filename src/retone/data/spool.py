"""Samples as lines of JSON on disk, so that a million of them need no memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from retone.conversation import Conversation, Document, Message

Trainable = Conversation | Document


def as_row(sample: Trainable) -> dict[str, Any]:
    """A sample as it stands in the run's data files; fields that are empty are left out."""
    row: dict[str, Any]
    if isinstance(sample, Document):
        row = {"text": sample.text}
    else:
        row = {"messages": [_message_row(message) for message in sample.messages]}
        if sample.tools:
            row["tools"] = sample.tools
    return row | {"source": sample.source, "row": sample.row, "extra": sample.extra}


def from_row(row: dict[str, Any]) -> Trainable:
    """The inverse of `as_row`."""
    source, number, extra = row["source"], row["row"], row["extra"]
    if "text" in row:
        return Document(row["text"], source, number, extra)
    messages = tuple(_message(fields) for fields in row["messages"])
    return Conversation(messages, source, number, extra, tuple(row.get("tools", ())))


def as_line(sample: Trainable) -> bytes:
    """A sample as one line of JSON; values that JSON lacks (dates of a table) become text."""
    text = json.dumps(as_row(sample), ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def from_line(line: bytes) -> Trainable:
    """The inverse of `as_line`."""
    return from_row(json.loads(line.decode("utf-8", "surrogatepass")))


def read_rows(path: Path, most: int | None = None) -> list[Conversation]:
    """The first conversations in a file of such lines; plain text is left out."""
    with path.open("rb") as lines:
        samples = map(from_line, lines)
        chats = (sample for sample in samples if isinstance(sample, Conversation))
        return list(islice(chats, most))


def read_texts(path: Path) -> list[Document]:
    """The plain texts in a file of such lines; conversations are left out."""
    with path.open("rb") as lines:
        return [sample for sample in map(from_line, lines) if isinstance(sample, Document)]


class Spool:
    """A file of samples, written once from front to end and then read by their numbers.

    Reading begins after the `with` block has ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends = array("Q", [0])  # where each line ends
        self._writing = path.open("wb")

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writing.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, sample: Trainable) -> None:
        """Write one sample; it gets the next number, counted from 0."""
        self._ends.append(self._ends[-1] + self._writing.write(as_line(sample)))

    def lines(self, indices: Iterable[int]) -> Iterator[bytes]:
        """The lines of the samples with these numbers, which ascend; read in one pass."""
        with self._path.open("rb", buffering=1 << 16) as file:
            place = 0
            for index in indices:
                if index != place:
                    file.seek(self._ends[index])
                place = index + 1
                yield file.readline()

    def samples(self, indices: Iterable[int]) -> Iterator[Trainable]:
        """As `lines`, read back."""
        return map(from_line, self.lines(indices))


def _message_row(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.loss_weight is not None:
        row["loss_weight"] = message.loss_weight
    for name in ("spans", "tool_calls", "thinking", "name"):
        if value := getattr(message, name):
            row[name] = value
    return row


def _message(row: dict[str, Any]) -> Message:
    if len(row) == 2:
        return Message(row["role"], row["content"])
    spans = tuple((text, weight) for text, weight in row.get("spans", ()))
    calls = tuple(row.get("tool_calls", ()))
    return Message(**{**row, "spans": spans, "tool_calls": calls})
