"""Copies of data with safe mends, or without secrets and personal data, and what was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from retone.conversation import Conversation, Document, Message
from retone.data.findings import excerpt
from retone.data.formats import Sample
from retone.data.private import redact
from retone.data.row_checks import mended

Kind = Literal["fix", "redact"]
Note = Callable[[str, str], None]  # field, what was done


@dataclass
class Cleaned:
    """What was done to the rows of a copy.

    Attributes:
        read, written: rows.
        changes: one entry a changed field: {source, row, field, change}. Secrets and personal data
            are never repeated there.
    """

    read: int = 0
    written: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)


def cleaned_lines(samples: Iterable[Sample], kind: Kind, done: Cleaned) -> Iterator[str]:
    """The rows of the copy as lines of JSON; `done` fills as they are taken.

    fix: white space and wrongly decoded text are mended, rows that equal an earlier one left out.
    redact: secrets and personal data become what they are, such as [E-MAIL ADDRESS].
    """
    seen: set[bytes] = set()
    for sample in samples:
        done.read += 1
        note = partial(_note, done, sample)
        clean = _each_text(sample, partial(_CLEAN[kind], note))
        line = json.dumps(_public_row(clean), ensure_ascii=False, default=str)
        line = line.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        digest = hashlib.blake2b(line.encode(), digest_size=16).digest()
        if kind == "fix" and digest in seen:
            note("row", "left out, it equals an earlier row")
            continue
        seen.add(digest)
        done.written += 1
        yield line + "\n"


def _fix(note: Note, place: str, text: str) -> str:
    new = mended(text)
    if new != text:
        before, after = (excerpt(redact(each)[0]) for each in (text, new))
        note(place, f"{before!r} -> {after!r}")
    return new


def _redact(note: Note, place: str, text: str) -> str:
    new, found = redact(text)
    if found:
        note(place, ", ".join(each.kind for each in found))
    return new


_CLEAN: dict[Kind, Callable[[Note, str, str], str]] = {"fix": _fix, "redact": _redact}


def _note(done: Cleaned, sample: Sample, place: str, change: str) -> None:
    entry = {"source": sample.source, "row": sample.row, "field": place, "change": change}
    done.changes.append(entry)


def _each_text(sample: Sample, clean: Callable[[str, str], str]) -> Sample:
    """The sample with every text of it, columns that are only carried along too, cleaned."""
    extra = {name: _value(value, name, clean) for name, value in sample.extra.items()}
    if isinstance(sample, Document):
        return replace(sample, text=clean("text", sample.text), extra=extra)
    if isinstance(sample, Conversation):
        return replace(sample, messages=_messages(sample.messages, clean), extra=extra)
    chosen, rejected = (
        None if answer is None else _message(answer, name, clean)
        for name, answer in (("chosen", sample.chosen), ("rejected", sample.rejected))
    )
    prompt = _messages(sample.prompt, clean)
    return replace(sample, prompt=prompt, chosen=chosen, rejected=rejected, extra=extra)


def _messages(messages: Iterable[Message], clean: Callable[[str, str], str]) -> tuple[Message, ...]:
    return tuple(_message(each, f"turn {at}", clean) for at, each in enumerate(messages, 1))


def _message(message: Message, place: str, clean: Callable[[str, str], str]) -> Message:
    spans = tuple((_piece(text, place, clean), weight) for text, weight in message.spans)
    content = "".join(text for text, _ in spans) if spans else clean(place, message.content)
    return replace(
        message,
        content=content,
        spans=spans,
        thinking=clean(f"{place}, thinking", message.thinking),
        tool_calls=_value(message.tool_calls, f"{place}, tool call", clean),
    )


def _piece(text: str, place: str, clean: Callable[[str, str], str]) -> str:
    """A part of a text: white space at its ends stands between words."""
    core = text.strip()
    if not core:
        return text
    return text.replace(core, clean(place, core), 1)


def _value(value: Any, place: str, clean: Callable[[str, str], str]) -> Any:
    """A JSON value with the texts in it cleaned."""
    if isinstance(value, str):
        return clean(place, value)
    if isinstance(value, dict):
        return {name: _value(each, place, clean) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_value(each, place, clean) for each in value)
    return value


def _public_row(sample: Sample) -> dict[str, Any]:
    """A row in the shapes of docs/formats.md: messages, text, or a preference."""
    row: dict[str, Any] = dict(sample.extra)
    if isinstance(sample, Document):
        return {"text": sample.text, **row}
    tools = {"tools": list(sample.tools)} if sample.tools else {}
    if isinstance(sample, Conversation):
        return {"messages": [_public_turn(turn) for turn in sample.messages], **tools, **row}
    answers: dict[str, Any] = {
        name: [_public_turn(answer)]
        for name, answer in (("chosen", sample.chosen), ("rejected", sample.rejected))
        if answer is not None
    }
    prompt = [_public_turn(turn) for turn in sample.prompt]
    if len(answers) == 1:  # a verdict on one answer
        ((name, answer),) = answers.items()
        return {"messages": [*prompt, *answer], "label": name == "chosen", **tools, **row}
    return {"prompt": prompt, **answers, **tools, **row}


def _public_turn(message: Message) -> dict[str, Any]:
    turn = message.as_dict()
    if message.spans:
        turn["content"] = [
            {"type": "text", "text": text, "loss_weight": weight} for text, weight in message.spans
        ]
    if message.loss_weight is not None:
        turn["loss_weight"] = message.loss_weight
    return turn
