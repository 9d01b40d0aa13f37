"""What a chat template does, found by rendering short conversations, never by a model's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from retone.answer_layout import Ending, Layout
from retone.conversation import Message
from retone.rendering import EXCERPT, Renderer, RowRejected, difference
from retone.row_encoder import Chat, RowEncoder
from retone.tokens import TextTokenizer

Strategy = Literal["whole", "per_turn"]
System = Literal["native", "merged into the first user turn"]

DIALOGUE = (
    Message("user", "What colour is grass?"),
    Message("assistant", "Grass is green."),
    Message("user", "And the sky?"),
    Message("assistant", "The sky is blue."),
    Message("user", "And snow?"),
    Message("assistant", "Snow is white."),
)
_TURNS = (1, 3, 5)
_QUESTION, _ANSWER = DIALOGUE[:2]
_SYSTEM = Message("system", "Answer in one sentence.")
_THINKING = "Leaves hold chlorophyll."
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_colour",
        "description": "Find the colour of a thing.",
        "parameters": {
            "type": "object",
            "properties": {"thing": {"type": "string", "description": "What to look at."}},
            "required": ["thing"],
        },
    },
}
_CALL = {"type": "function", "function": {"name": "find_colour", "arguments": {"thing": "meadow"}}}


@dataclass(frozen=True)
class Trim:
    """White space around answers that does not survive, because of the template or the tokenizer.

    Attributes:
        before: these characters are lost at the beginning of an answer; None: all white space.
        after: the same for its end.
    """

    before: str | None = ""
    after: str | None = ""

    def __bool__(self) -> bool:
        return self.before != "" or self.after != ""

    def __str__(self) -> str:
        what = {None: "white space", "\n": "line breaks"}
        if self.before == self.after and self:
            return f"{what[self.before]} before and after"
        sides = (("before", self.before), ("after", self.after))
        return " and ".join(f"{what[lost]} {side}" for side, lost in sides if lost != "")

    def of(self, text: str) -> str:
        """The text without what would be lost."""
        return text.lstrip(self.before).rstrip(self.after)


@dataclass(frozen=True)
class Facts:
    """What the probes found.

    Attributes:
        encoder: makes rows with what was found.
        strategy: `whole` where one row holds all assistant turns; `per_turn` where the template
            changes earlier turns.
        strategy_reason: why not `whole`, with an excerpt; empty where it is.
        trim: white space around answers that cannot be trained on.
        system: whether the template has a place for a system message.
        thinking: whether it has a place for reasoning before the answer.
    """

    encoder: RowEncoder
    strategy: Strategy
    strategy_reason: str
    trim: Trim
    system: System
    thinking: bool


def probe(render: Renderer, tokenizer: TextTokenizer) -> Facts:
    """Render, encode and look; RowRejected where no row could ever be exact."""
    layout = _probe_layout(render, tokenizer)
    layout, thinking = _probe_thinking(layout, render, tokenizer)
    layout = _probe_calls(layout, render, tokenizer)
    encoder = RowEncoder(render, tokenizer, layout)
    encoder.context = _probe_context(encoder)
    strategy, reason = _probe_strategy(encoder)
    trim, system = _probe_trim(encoder), _probe_system(encoder)
    return Facts(encoder, strategy, reason, trim, system, thinking)


def _chat(
    render: Renderer, *messages: Message, tools: Sequence[dict[str, Any]] = ()
) -> tuple[str, str]:
    """Texts of the prompt before the last message, and of all messages."""
    dicts = [message.as_dict() for message in messages]
    prompt = render(dicts[:-1], tools=tools, add_generation_prompt=True)
    text = render(dicts, tools=tools, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise RowRejected("prompt-not-prefix", difference(prompt, text))
    return prompt, text


def _probe_layout(render: Renderer, tokenizer: TextTokenizer) -> Layout:
    """What stands around the content of an answer, up to the first token that can end it."""
    content = _ANSWER.content
    prompt, text = _chat(render, _QUESTION, _ANSWER)
    begin = text.rfind(content, len(prompt))
    if begin < 0:
        raise RowRejected("content-changed", f"{content!r} is not in {text[-EXCERPT:]!r}")
    end = begin + len(content)
    opening = text[len(prompt) : begin]
    stop, ending = _ending_after(end, text, tokenizer)
    marker = _from_added(opening, tokenizer, last=True)
    return Layout(opening, text[end:stop], ending, marker, _head(opening, tokenizer))


def _ending_after(at: int, text: str, tokenizer: TextTokenizer) -> tuple[int, Ending]:
    """The first token from the character `at` on that ends generation, and where it begins."""
    tokens = tokenizer.tokenize(text)
    for index in range(tokens.before(at), len(tokens)):
        if (token := tokens.ids[index]) in tokenizer.end_ids:
            start = tokens.place(index)[0]
            return start, Ending(text[start:], token)
    raise RowRejected("no-stop-token", f"no end token in the tail {text[-EXCERPT:]!r}")


def _from_added(text: str, tokenizer: TextTokenizer, *, last: bool = False) -> str:
    """The text from its first or last added token on; empty where it holds none."""
    found = [at for token in tokenizer.added for at in (text.find(token), text.rfind(token))]
    places = [at for at in found if at >= 0]
    return text[(max if last else min)(places) :] if places else ""


def _head(opening: str, tokenizer: TextTokenizer) -> str:
    """What tells an opening early: the added token that it begins with, or its first line."""
    tokens = (token for token in tokenizer.added if opening.startswith(token))
    return max(tokens, key=len, default=opening.split("\n")[0])


def _probe_thinking(
    layout: Layout, render: Renderer, tokenizer: TextTokenizer
) -> tuple[Layout, bool]:
    """Whether reasoning is rendered, and if so the marker between it and the answer."""
    try:
        prompt, text = _chat(render, _QUESTION, replace(_ANSWER, thinking=_THINKING))
    except RowRejected:
        return layout, False
    before, found, after = text[len(prompt) :].partition(_THINKING)
    if not found:
        return layout, False
    between = after.partition(_ANSWER.content)[0]
    # What both an opening and the end of thinking come to; a channel's name belongs to it.
    ends = zip(reversed(layout.opening), reversed(between), strict=False)
    shared = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], ends))[::-1]
    marker = _from_added(shared, tokenizer) or layout.marker
    marker = marker or _from_added(between, tokenizer, last=True) or between
    head = layout.head or _head(before, tokenizer)
    return replace(layout, marker=marker, head=head), True


def _probe_calls(layout: Layout, render: Renderer, tokenizer: TextTokenizer) -> Layout:
    """How a turn that calls a tool ends, or why there can be none."""
    call = Message("assistant", "", tool_calls=(_CALL,))
    try:
        prompt, text = _chat(render, _QUESTION, call, tools=(_TOOL,))
    except RowRejected as rejected:
        return replace(layout, no_calls=str(rejected))
    name, value = (text.rfind(word, len(prompt)) for word in ("find_colour", "meadow"))
    if name < 0 or value < 0:
        return replace(layout, no_calls="the template does not write tool calls")
    if text.endswith(layout.ending.tail):
        return replace(layout, call_ending=layout.ending)
    try:
        return replace(layout, call_ending=_ending_after(value, text, tokenizer)[1])
    except RowRejected as rejected:
        return replace(layout, no_calls=str(rejected))


def _probe_context(encoder: RowEncoder) -> tuple[int, ...]:
    """The prompt token to decode answers after, or none.

    Some decoders drop a space at the beginning of a text, and some encoders put one after every
    special token. An answer is decoded on its own, except where it may begin with a space.
    """
    spaced = Message("assistant", f" {_ANSWER.content}")
    prompt = encoder.render([_QUESTION.as_dict()], add_generation_prompt=True)
    last = tuple(encoder.tokenizer.tokenize(prompt).ids[-1:])
    for context, turn in ((last, spaced), ((), _ANSWER)):
        encoder.context = context
        if _holds(encoder, _QUESTION, turn):
            return context
    return last


def _probe_strategy(encoder: RowEncoder) -> tuple[Strategy, str]:
    """`whole` where a row of several turns passes every check; else `per_turn`, and why."""
    try:
        encoder.row(DIALOGUE, _TURNS)
    except RowRejected as rejected:
        for turn in _TURNS:
            encoder.row(DIALOGUE[: turn + 1], (turn,))
        return "per_turn", str(rejected)
    return "whole", ""


def _probe_trim(encoder: RowEncoder) -> Trim:
    """Which white space around an answer makes its row fail: none, line breaks, or any."""

    def holds(content: str) -> bool:
        return _holds(encoder, _QUESTION, Message("assistant", content))

    def lost(space: bool, line_break: bool) -> str | None:
        return ("" if line_break else "\n") if space else None

    answer = _ANSWER.content
    return Trim(
        before=lost(holds(f"  {answer}"), holds(f"\n{answer}")),
        after=lost(holds(f"{answer}  "), holds(f"{answer}\n")),
    )


def _probe_system(encoder: RowEncoder) -> System:
    """Whether a system message is rendered, and stays when the answer follows."""
    prompt = (_SYSTEM, _QUESTION)
    try:
        text = encoder.render([message.as_dict() for message in prompt], add_generation_prompt=True)
    except RowRejected:
        text = ""
    if _SYSTEM.content in text and _holds(encoder, *prompt, _ANSWER):
        return "native"
    return "merged into the first user turn"


def _holds(encoder: RowEncoder, *messages: Message) -> bool:
    """Whether a conversation makes a row that trains its last turn."""
    chat = Chat(messages, (len(messages) - 1,))
    return not isinstance(encoder.rows([chat], whole=True)[0], RowRejected)
