"""What a template writes around and into an assistant turn, and the checks on that text.

An assistant turn is written as `opening + content + lead + tail`; the tail begins with the token
that generation stops on. A turn that calls tools may end with another token, and everything between
its prompt and that token is the template's own way of writing the calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from retone.conversation import Message
from retone.rendering import EXCERPT, RowRejected, difference


class Ending(NamedTuple):
    """How turns end: the text from the stop token on, and that token's id."""

    tail: str
    stop_id: int


@dataclass(frozen=True)
class Layout:
    """What the template writes around an assistant turn that comes last.

    Attributes:
        opening: between the generation prompt and the content, such as an empty thinking block.
        lead: between the content and the stop token; nearly always empty.
        ending: the rest of the turn.
        marker: the end of the opening, or of thinking; answers stand after it. Empty for none.
        head: what a turn begins with while it opens, or thinks; empty where none does.
        call_ending: the end of a turn that calls tools; None where the template writes no calls.
        no_calls: why not, where it writes none.
    """

    opening: str
    lead: str
    ending: Ending
    marker: str = ""
    head: str = ""
    call_ending: Ending | None = None
    no_calls: str = ""

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a turn."""
        endings = (self.ending, self.call_ending)
        return frozenset(ending.stop_id for ending in endings if ending is not None)

    def ending_of(self, message: Message) -> Ending:
        """How this turn ends; RowRejected where it calls tools and the template cannot say so."""
        if not message.tool_calls:
            return self.ending
        if self.call_ending is None:
            raise RowRejected("tool-call-not-rendered", self.no_calls)
        return self.call_ending

    def answer_in(self, text: str, stop_id: int) -> str:
        """The answer in the text of a turn that was ended by the token `stop_id`.

        Without thinking and without the lead; a turn that ends as only calls do is left as it is.
        """
        calls = self.call_ending
        if calls is not None and stop_id == calls.stop_id != self.ending.stop_id:
            return text
        text = text.removesuffix(self.lead)
        if self.marker:
            return text.rpartition(self.marker)[2]
        return text.removeprefix(self.opening)

    def still_opening(self, text: str) -> bool:
        """Whether a turn that begins with `text` may be before the end of its opening."""
        if not (self.marker and self.head) or self.marker in text:
            return False
        return text.startswith(self.head) or self.head.startswith(text)


class Turn(NamedTuple):
    """A trained turn in the text of its row.

    Attributes:
        message: the turn.
        start: characters of the prompt before it.
        stop: character at which its stop token begins.
        stop_id: id of that token.
        content: character at which its content begins.
    """

    message: Message
    start: int
    stop: int
    stop_id: int
    content: int


def locate(prompt: str, text: str, message: Message, layout: Layout) -> Turn:
    """Find the trained part of `message`, the last turn of `text`, and check what it says.

    Raises:
        RowRejected: the turn does not begin with its prompt, does not end like other turns, or does
            not say exactly what the message says.
    """
    if not text.startswith(prompt):
        raise RowRejected("prompt-not-prefix", difference(prompt, text))
    ending = layout.ending_of(message)
    stop = len(text) - len(ending.tail)
    if not text.endswith(ending.tail) or stop < len(prompt):
        raise RowRejected("no-stop-token", f"the turn ends with {text[-EXCERPT:]!r}")
    written = text[len(prompt) : stop]
    if message.tool_calls:
        content = _content_among_calls(written, message)
    else:
        content = _content_at_end(written, message, layout)
    return Turn(message, len(prompt), stop, ending.stop_id, len(prompt) + content)


def _content_at_end(written: str, message: Message, layout: Layout) -> int:
    """Where the content begins in a turn without calls, which ends with it."""
    content = message.content
    answer = written.removesuffix(layout.lead)
    before = answer.removesuffix(content)
    if message.thinking:
        _check_thinking(before, message)
        same = answer.endswith(content)
    else:
        same = answer in (content, layout.opening + content)
    if not same:
        raise RowRejected("content-changed", difference(layout.opening + content, answer))
    return len(before)


def _content_among_calls(written: str, message: Message) -> int:
    """Where the content begins in a turn with calls; names and arguments must be written out."""
    for call in message.tool_calls:
        function = call.get("function", call)
        for value in (function.get("name", ""), *_leaves(function.get("arguments"))):
            if not any(form in written for form in _forms(value)):
                raise RowRejected("tool-call-not-rendered", f"{value!r} is not in {written!r}")
    _check_thinking(written, message)
    if message.content not in written:
        raise RowRejected("content-changed", difference(message.content, written))
    return written.find(message.content)


def _check_thinking(written: str, message: Message) -> None:
    """RowRejected where the thinking of `message` is not in what is written."""
    if message.thinking.strip() not in written:
        found = f"{message.thinking[:EXCERPT]!r} is not in {written[:EXCERPT]!r}"
        raise RowRejected("thinking-not-rendered", found)


def _leaves(arguments: Any) -> Iterator[Any]:
    """The keys and plain values of nested arguments."""
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            yield key
            yield from _leaves(value)
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            yield from _leaves(value)
    elif arguments is not None:
        yield arguments


def _forms(value: Any) -> tuple[str, str]:
    """How templates write a plain value: as Python does, or as JSON without its quotes."""
    written = json.dumps(value, ensure_ascii=False)
    return str(value), written[1:-1] if isinstance(value, str) else written


def is_written(content: str, text: str) -> bool:
    """Whether the content of a tool's turn stands in a text, plainly or as JSON."""
    return any(form in text for form in _forms(content.strip()))


def check_rendered(
    messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], text: str
) -> None:
    """RowRejected where the template leaves a tool's description or a tool's answer out."""
    for tool in tools:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in text:
            raise RowRejected("tools-not-rendered", f"the tool {name!r} is not in the text")
    for message in messages:
        if message.role == "tool" and not is_written(message.content, text):
            raise RowRejected("tools-not-rendered", f"the answer {message.content[:EXCERPT]!r}")
