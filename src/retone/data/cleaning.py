"""Copies of data with safe mends, or without secrets and personal data, and what was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from retone.conversation import Conversation, Document, Message, Preference
from retone.data.findings import EXCERPT
from retone.data.formats import Sample
from retone.data.private import Private, find_private, label, redact, veiled
from retone.data.row_checks import mended

Kind = Literal["fix", "redact"]
Note = Callable[[str, str], None]  # field, what was done
Spans = tuple[tuple[str, float], ...]


@dataclass
class Cleaned:
    """What became of the rows of a copy: how many were read and written, and changes made."""

    read: int = 0
    written: int = 0
    changes: int = 0


def cleaned_lines(
    samples: Iterable[Sample], kind: Kind, done: Cleaned, tell: Callable[[dict[str, Any]], None]
) -> Iterator[str]:
    """The rows of the copy as lines of JSON; `done` counts as they are taken.

    fix: white space and wrongly decoded text of turns and documents are mended, rows that equal an
    earlier one left out. redact: secrets and personal data become what they are, such as
    [E-MAIL ADDRESS], in all texts: tool calls, tools and columns that are only carried along too.

    Args:
        samples: the rows.
        kind: what is done to them.
        done: the counts.
        tell: told of each changed field {source, row, field, change}; what is private is not
            repeated there.
    """
    seen: set[bytes] = set()
    for sample in samples:
        done.read += 1

        def note(place: str, change: str, at: Sample = sample) -> None:
            done.changes += 1
            tell({"source": at.source, "row": at.row, "field": place, "change": change})

        row = _public_row(_fixed(sample, note) if kind == "fix" else _redacted(sample, note))
        line = json.dumps(row, ensure_ascii=False, default=str)
        line = line.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        if kind == "fix":
            digest = hashlib.blake2b(line.encode(), digest_size=16).digest()
            if digest in seen:
                note("row", "left out, it equals an earlier row")
                continue
            seen.add(digest)
        done.written += 1
        yield line + "\n"


def _fixed(sample: Sample, note: Note) -> Sample:
    """The sample with its turns or its text mended."""

    def mend(place: str, text: str) -> str:
        if (new := mended(text)) != text:
            note(place, _difference(text, new))
        return new

    def turn(message: Message, place: str) -> Message:
        spans = tuple((_core(text, partial(mend, place)), weight) for text, weight in message.spans)
        content = "".join(text for text, _ in spans) if spans else mend(place, message.content)
        thinking = mend(f"{place}, thinking", message.thinking)
        return replace(message, content=content, spans=spans, thinking=thinking)

    if isinstance(sample, Document):
        return replace(sample, text=mend("text", sample.text))
    return _each_turn(sample, turn)


def _redacted(sample: Sample, note: Note) -> Sample:
    """The sample without what is private, wherever it stands."""

    def hide(place: str, text: str) -> str:
        new, found = redact(text)
        if found:
            note(place, ", ".join(each.kind for each in found))
        return new

    def value(given: Any, place: str) -> Any:
        if isinstance(given, str):
            return hide(place, given)
        if isinstance(given, dict):
            return {name: value(each, place) for name, each in given.items()}
        if isinstance(given, list | tuple):
            return type(given)(value(each, place) for each in given)
        return given

    def turn(message: Message, place: str) -> Message:
        content = hide(place, message.content)
        places = find_private(message.content) if message.spans else []
        spans = _redacted_spans(message.spans, places)
        thinking = hide(f"{place}, thinking", message.thinking)
        calls = value(message.tool_calls, f"{place}, tool call")
        return replace(message, content=content, spans=spans, thinking=thinking, tool_calls=calls)

    sample = replace(sample, extra={name: value(v, name) for name, v in sample.extra.items()})
    if isinstance(sample, Document):
        return replace(sample, text=hide("text", sample.text))
    return _each_turn(replace(sample, tools=value(sample.tools, "tools")), turn)


def _redacted_spans(spans: Spans, found: Iterable[Private]) -> Spans:
    """Pieces of a text without what is private in it: a label stands where that begins."""
    pieces, begin = [], 0
    for text, weight in spans:
        end, left, at = begin + len(text), [], begin
        for private in found:
            if private.end <= begin or private.start >= end:
                continue
            left.append(text[at - begin : max(private.start, at) - begin])
            if private.start >= begin:
                left.append(label(private))
            at = min(private.end, end)
        pieces.append(("".join([*left, text[at - begin :]]), weight))
        begin = end
    return tuple(pieces)


def _each_turn(
    sample: Conversation | Preference, turn: Callable[[Message, str], Message]
) -> Conversation | Preference:
    """The sample with every turn of it changed; `turn` is told its place."""
    given = sample.messages if isinstance(sample, Conversation) else sample.prompt
    turns = tuple(turn(each, f"turn {at}") for at, each in enumerate(given, 1))
    if isinstance(sample, Conversation):
        return replace(sample, messages=turns)
    chosen, rejected = (
        None if answer is None else turn(answer, name)
        for name, answer in (("chosen", sample.chosen), ("rejected", sample.rejected))
    )
    return replace(sample, prompt=turns, chosen=chosen, rejected=rejected)


def _core(text: str, change: Callable[[str], str]) -> str:
    """A part of a text changed but for the white space at its ends, which stands between words."""
    core = text.strip()
    return text.replace(core, change(core), 1) if core else text


def _difference(before: str, after: str) -> str:
    """Both from shortly before the first character that differs."""
    before, after = veiled(before), veiled(after)
    pairs = enumerate(zip(before, after, strict=False))
    same = next((at for at, (old, new) in pairs if old != new), min(len(before), len(after)))
    start = max(0, same - EXCERPT // 4)
    return f"{before[start : start + EXCERPT]!r} -> {after[start : start + EXCERPT]!r}"


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
