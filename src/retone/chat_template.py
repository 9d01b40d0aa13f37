"""A model's own chat template: what is rendered, which tokens are trained, how answers are read.

For the assistant turn k of a conversation, the prompt is `render(messages[:k])` with the generation
prompt, and the turn is `render(messages[:k + 1])`. The prompt must be a prefix of the turn, as text
and as token ids. Trained is everything from the end of the prompt up to and including the token
that generation stops on; everything else is masked. What a template does is found by rendering a
probe, never by a model's name, and every row is verified again when it is encoded. The tokenizer is
handed in: this module loads without torch and transformers.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from retone.batch import EncodedRow
from retone.conversation import Message
from retone.errors import InputError

Strategy = Literal["whole", "per_turn"]

_PROBE = (
    Message("user", "What colour is grass?"),
    Message("assistant", "Grass is green."),
    Message("user", "And the sky?"),
    Message("assistant", "The sky is blue."),
    Message("user", "And snow?"),
    Message("assistant", "Snow is white."),
)
_EXCERPT = 40  # characters of rendered text quoted in a message


class RowRejected(Exception):
    """A conversation that this template cannot turn into a faithful training row.

    Attributes:
        reason: a kebab-case slug for the ledger, for example `tokens-merge-at-answer`.
        detail: what was found, with an excerpt.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class _Layout:
    """What the template writes around the content of an assistant turn that comes last.

    Attributes:
        opening: between the generation prompt and the content, such as an empty thinking block.
        lead: between the content and the stop token; nearly always empty.
        tail: everything after the content, beginning with `lead` and the stop token.
        marker: end of `opening` from its last added token on, or empty; answers stand after it.
    """

    opening: str
    lead: str
    tail: str
    marker: str

    def answer_in(self, text: str) -> str:
        """The answer in the text of a turn, without thinking and without the lead."""
        text = text.removesuffix(self.lead)
        if self.marker:
            return text.rpartition(self.marker)[2]
        return text.removeprefix(self.opening)


class _Rendered(NamedTuple):
    """A text, its token ids and the (start, end) characters of each token."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class ChatTemplate:
    """The chat template of `tokenizer`.

    Args:
        tokenizer: a fast tokenizer that has a chat template.
        name: what messages call the model.
        date: the day that a template which prints today's date prints instead. None takes today,
            once: a long job does not change its prompts at midnight.

    Attributes:
        text: the template, with the date pinned where it prints one. Rendering this text with the
            tokenizer's own `apply_chat_template` gives the same ids as this class.
        date: the pinned day; None where the template prints no date.
        stop_id: id of the token that ends the answer of the last assistant turn.
        stop_ids: `stop_id` and the tokenizer's end-of-text id: either ends a generated answer.
        strategy: `whole` where one row holds all assistant turns; `per_turn` where the template
            changes earlier turns, so that each assistant turn makes a row of its own.
        strategy_reason: why not `whole`, with an excerpt; empty where it is.

    Raises:
        InputError: `no-chat-template`, or `template-refused` with the reason.
    """

    def __init__(
        self, tokenizer: Any, *, name: str = "", date: datetime.date | None = None
    ) -> None:
        self.name = name or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
        self._tokenizer = tokenizer
        source = self._template_source()
        self._sha256 = hashlib.sha256(source.encode()).hexdigest()
        self.date = (date or datetime.date.today()) if prints_date(source) else None
        self.text = source if self.date is None else pin_date(source, self.date)
        try:
            self.stop_id, self._layout = self._probe_layout()
            self.stop_ids = frozenset({self.stop_id, tokenizer.eos_token_id} - {None})
            self._context = self._probe_context()
            self.strategy, self.strategy_reason = self._probe_strategy()
        except RowRejected as rejected:
            raise InputError(
                f"the chat template of {self.name} cannot be trained on exactly",
                f"{rejected.reason}: {rejected.detail}",
                "choose another base model, or a template whose generation prompt is a prefix of "
                "the finished turn",
                "template-refused",
            ) from rejected

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of `messages`; RowRejected (`template-error`) where the template refuses."""
        chat = [message.as_dict() for message in messages]
        options = {"add_generation_prompt": add_generation_prompt}
        return render_chat(self._tokenizer, self.text, chat, **options)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the prompt for the next assistant turn; raises as `render` does."""
        return self._tokenize(self.render(messages, add_generation_prompt=True)).ids

    def encode(
        self, messages: Sequence[Message], *, source: str = "", row: int = 0
    ) -> list[EncodedRow]:
        """The training rows of one conversation, each verified.

        Returns:
            One row; or one per trained turn, where earlier turns would render differently (by the
            template, or by a thinking block in this conversation's own content).

        Raises:
            RowRejected: no row can be made that trains exactly the content and its stop token.
        """
        turns = _trained_turns(messages)
        if self.strategy == "whole":
            with suppress(RowRejected):  # where it lasts, the lines below find it again
                return [self._row(messages, turns, source, row)]
        return [self._row(messages[: turn + 1], (turn,), source, row) for turn in turns]

    def parse(self, ids: Sequence[int]) -> str:
        """The answer in generated `ids`, up to the first stop token.

        Undoes `encode`: the trained ids of a turn give its content. Where the template opens an
        answer with text of its own (a thinking block, a channel name), only what stands after the
        end of that opening is kept, so thinking that was generated is dropped as well.
        """
        stop = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return self._layout.answer_in(self._decode(ids[:stop]))

    def lock(self, fixed_prompts: Sequence[Sequence[Message]]) -> dict[str, Any]:
        """What `verify_lock` compares: JSON-able, with the prompt ids of `fixed_prompts`."""
        prompts = [
            {"messages": [m.as_dict() for m in prompt], "ids": list(self.prompt_ids(prompt))}
            for prompt in fixed_prompts
        ]
        return {
            "template_sha256": self._sha256,
            "date": self.date.isoformat() if self.date else None,
            "stop_ids": sorted(self.stop_ids),
            "prompts": prompts,
        }

    def verify_lock(self, lock: Mapping[str, Any]) -> list[str]:
        """How this template differs from the one that wrote `lock`; empty where it does not."""
        differences = [
            f"{key} is {here!r}, the lock has {lock.get(key)!r}"
            for key, here in self.lock([]).items()
            if key != "prompts" and here != lock.get(key)
        ]
        for number, prompt in enumerate(lock["prompts"], start=1):
            messages = [Message(**fields) for fields in prompt["messages"]]
            try:
                same = list(self.prompt_ids(messages)) == prompt["ids"]
            except RowRejected:
                same = False
            if not same:
                differences.append(f"prompt {number} does not give the ids of the lock")
        return differences

    def _template_source(self) -> str:
        try:
            return str(self._tokenizer.get_chat_template())
        except ValueError as error:
            raise InputError(
                f"{self.name} has no chat template",
                f"the tokenizer says: {error}",
                "use an instruction-tuned model, or set the tokenizer's chat_template",
                "no-chat-template",
            ) from error

    def _probe_layout(self) -> tuple[int, _Layout]:
        """Render one question and answer: the stop token's id, and what stands around answers."""
        content = _PROBE[1].content
        prompt, turn = self._prompt_and_turn(_PROBE, 1)
        begin = turn.rfind(content, len(prompt))
        if begin < 0:
            raise RowRejected("content-changed", f"{content!r} is not in {turn[-_EXCERPT:]!r}")
        opening, tail_start = turn[len(prompt) : begin], begin + len(content)
        added = self._tokenizer.added_tokens_decoder
        last = max((opening.rfind(str(token)) for token in added.values()), default=-1)
        marker = opening[last:] if last >= 0 else ""
        special = {self._tokenizer.eos_token_id, *self._tokenizer.all_special_ids}
        special.update(token for token, entry in added.items() if entry.special)
        rendered = self._tokenize(turn)
        for token, (start, _) in zip(rendered.ids, rendered.offsets, strict=True):
            if start >= tail_start and token in special:
                return token, _Layout(opening, turn[tail_start:start], turn[tail_start:], marker)
        raise RowRejected("no-stop-token", f"no end token in the tail {turn[-_EXCERPT:]!r}")

    def _probe_context(self) -> tuple[int, ...]:
        """The prompt token to decode answers after, or none.

        Some decoders drop a space at the beginning of a text, and some encoders put one after every
        special token. An answer is decoded on its own, except where it may begin with a space.
        """
        question, answer = _PROBE[:2]
        spaced = Message("assistant", f" {answer.content}")
        last = self.prompt_ids([question])[-1:]
        for context, turn in ((last, spaced), ((), answer)):
            self._context = context
            with suppress(RowRejected):
                self._row((question, turn), (1,))
                return context
        return last

    def _probe_strategy(self) -> tuple[Strategy, str]:
        """`whole` where a row of several turns passes every check; else `per_turn`, and why."""
        turns = _trained_turns(_PROBE)
        try:
            self._row(_PROBE, turns)
        except RowRejected as rejected:
            for turn in turns:
                self._row(_PROBE[: turn + 1], (turn,))
            return "per_turn", str(rejected)
        return "whole", ""

    def _row(
        self, messages: Sequence[Message], turns: Sequence[int], source: str = "", row: int = 0
    ) -> EncodedRow:
        """One row of `messages` in which the assistant turns at `turns` are trained."""
        rendered = self._tokenize(self.render(messages, add_generation_prompt=False))
        weights = [0.0] * len(rendered.ids)
        for turn in turns:
            first, stop = self._span(messages, turn, rendered)
            weights[first : stop + 1] = [messages[turn].weight] * (stop + 1 - first)
        return EncodedRow(rendered.ids, tuple(weights), source, row)

    def _span(self, messages: Sequence[Message], turn: int, row: _Rendered) -> tuple[int, int]:
        """First trained token of a turn and its stop token, as indices into `row`."""
        prompt, text = self._prompt_and_turn(messages, turn)
        content = messages[turn].content
        layout = self._layout
        end = len(text) - len(layout.tail)
        if not text.endswith(layout.tail) or end < len(prompt):
            raise RowRejected("no-stop-token", f"the turn ends with {text[-_EXCERPT:]!r}")
        answer = text[len(prompt) : end]
        if answer not in (content, layout.opening + content):
            raise RowRejected("content-changed", _difference(layout.opening + content, answer))
        stop_start = end + len(layout.lead)
        if not row.text.startswith(text[:stop_start]):
            raise RowRejected("earlier-turn-changed", _difference(text, row.text))
        first = self._first_answer_token(prompt, row)
        starts = [start for start, _ in row.offsets]
        stop = starts.index(stop_start) if stop_start in starts else first
        if row.ids[stop] != self.stop_id:
            found = row.text[stop_start:][:_EXCERPT]
            raise RowRejected("no-stop-token", f"the answer is followed by {found!r}")
        self._check_answer(row.ids[first:stop], answer + layout.lead, content)
        return first, stop

    def _prompt_and_turn(self, messages: Sequence[Message], turn: int) -> tuple[str, str]:
        """Texts of the prompt before a turn and of the conversation up to the turn."""
        if turn == 0:
            raise RowRejected("no-prompt", "the conversation begins with a trained assistant turn")
        prompt = self.render(messages[:turn], add_generation_prompt=True)
        text = self.render(messages[: turn + 1], add_generation_prompt=False)
        if not text.startswith(prompt):
            raise RowRejected("prompt-not-prefix", _difference(prompt, text))
        return prompt, text

    def _first_answer_token(self, prompt: str, row: _Rendered) -> int:
        """Index of the token that begins exactly where the prompt ends."""
        before = self._tokenize(prompt).ids
        first = len(before)
        # An added token may swallow the white space after it, with the same ids: hence the offset.
        if row.ids[:first] != before or row.offsets[first - 1][1] > len(prompt):
            where = f"{prompt[-_EXCERPT:]!r} and {row.text[len(prompt) :][:_EXCERPT]!r}"
            raise RowRejected("tokens-merge-at-answer", f"a token spans the end of {where}")
        return first

    def _check_answer(self, ids: Sequence[int], text: str, content: str) -> None:
        """Raise RowRejected unless generating `ids` and a stop token would give `content` back."""
        if not self.stop_ids.isdisjoint(ids):
            raise RowRejected("stop-token-in-answer", f"it would end inside {content[:_EXCERPT]!r}")
        decoded = self._decode(ids)
        if decoded != text:
            raise RowRejected("tokens-do-not-invert", _difference(text, decoded))
        parsed = self._layout.answer_in(decoded)
        # A content that brings its own thinking block is read back without it.
        own_thinking = self._layout.marker and content == text.removesuffix(self._layout.lead)
        if parsed != content and not own_thinking:
            raise RowRejected("tokens-do-not-invert", _difference(content, parsed))

    def _tokenize(self, text: str) -> _Rendered:
        # The template has already written the special tokens; adding them would double the first.
        try:
            encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except TypeError as error:
            raise RowRejected("not-unicode", f"half a surrogate pair in {text!r}") from error
        except NotImplementedError as error:
            raise RowRejected("slow-tokenizer", f"no character offsets: {error}") from error
        offsets = tuple((start, end) for start, end in encoding["offset_mapping"])
        return _Rendered(text, tuple(encoding["input_ids"]), offsets)

    def _decode(self, ids: Sequence[int]) -> str:
        decode = partial(
            self._tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        context: str = decode(list(self._context))
        text: str = decode([*self._context, *ids])
        # Half a character at the start of the ids can spoil the bytes of the context.
        return text[len(context) :] if text.startswith(context) else decode(list(ids))


def render_chat(
    tokenizer: Any, template_text: str, chat: list[dict[str, Any]], **variables: Any
) -> str:
    """The text that `template_text` makes of `chat`, with `variables` (tools, documents ...).

    RowRejected (`template-error`) carries what the template raised.
    """
    options = {"chat_template": template_text, "tokenize": False, **variables}
    try:
        return str(tokenizer.apply_chat_template(chat, **options))
    # Templates raise on purpose (raise_exception) and by accident (a missing field).
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise RowRejected("template-error", f"the template raised: {error}") from error


def prints_date(template_text: str) -> bool:
    """Whether the template can print today's date."""
    return re.search(r"\bstrftime_now\s*\(", template_text) is not None


def pin_date(template_text: str, date: datetime.date) -> str:
    """The template with `strftime_now` answering for midnight of `date`, whoever renders it.

    The date stands in the text because renderers accept plain data only, so that a function handed
    to them never reaches the template; and because an exported template has to print it as well.
    """
    moment = datetime.datetime.combine(date, datetime.time())
    values = {f"%{letter}": moment.strftime(f"%{letter}") for letter in "aAbBcdHIjmMpSUwWxXyYZ"}
    values |= {"%-d": f"{date.day}", "%-m": f"{date.month}", "%e": f"{date.day:2}"}
    values |= {"%F": date.isoformat(), "%T": "00:00:00", "%%": "%"}
    steps = "".join(f" | replace({code!r}, {value!r})" for code, value in values.items())
    # The line break belongs to the tag before it: the template still begins at the start of a line.
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n"
    return macro + template_text


def _trained_turns(messages: Sequence[Message]) -> tuple[int, ...]:
    """Indices of the assistant turns with a loss weight; RowRejected where there are none."""
    if not any(message.role == "assistant" for message in messages):
        raise RowRejected("no-assistant-turn", f"{len(messages)} messages, none by the assistant")
    if weighted := {message.role for message in messages if message.weight} - {"assistant"}:
        raise RowRejected("weight-on-other-role", f"a loss weight on a turn by {min(weighted)}")
    turns = tuple(at for at, message in enumerate(messages) if message.weight)
    if not turns:
        raise RowRejected("nothing-trained", "every assistant turn has the loss weight 0")
    return turns


def _difference(expected: str, found: str) -> str:
    """Where two texts part, with an excerpt of both."""
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(expected), len(found)))
    window = slice(max(0, at - 12), at + _EXCERPT)
    return f"expected {expected[window]!r}, found {found[window]!r} (character {at})"
