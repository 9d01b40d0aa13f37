"""A model's chat template: what is rendered, which tokens are trained, how answers are read.

For the assistant turn k of a conversation, the prompt is `render(messages[:k])` with the generation
prompt, and the turn is `render(messages[:k + 1])`. The prompt must be a prefix of the turn, as text
and as token ids. Trained is everything from the end of the prompt up to and including the token
that generation stops on; everything else is masked. What a template does is found by rendering
probes, and every row is verified again when it is encoded. The tokenizer is handed in: this module
loads without torch and transformers.

    prompt_styles   which template: the model's own, a style, a file
    rendering       messages -> text
    tokens          text -> ids and back; where a prompt ends
    answer_layout   what stands around and in an assistant turn
    row_encoder     text and tokens -> verified rows
    template_probe  what this template does
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from retone.batch import EncodedRow
from retone.conversation import Conversation, Message
from retone.errors import InputError
from retone.prompt_styles import AUTO, choose_template
from retone.rendering import Renderer, RowRejected, pin_date, prints_date
from retone.row_encoder import Chat
from retone.template_probe import Strategy, System, Trim, probe
from retone.tokens import TextTokenizer, encode_document

__all__ = ["ChatTemplate", "RowRejected", "TrainOn"]

TrainOn = Literal["all", "last", "everything"]


class ChatTemplate:
    """The chat template of `tokenizer`.

    Args:
        tokenizer: a fast tokenizer.
        name: what messages call the model.
        date: the day that a template which prints today's date prints instead. None takes today,
            once: a long job does not change its prompts at midnight.
        style: `auto` for the tokenizer's own template, a prompt style, or the path of a Jinja file.

    Attributes:
        text: the template, with the date pinned where it prints one. Rendering this text with the
            tokenizer's own `apply_chat_template` gives the same ids as this class; saved tokenizers
            must carry it.
        undated: the template before the date was pinned.
        origin: in words, where the template comes from and what was changed in it.
        date: the pinned day; None where the template prints no date.
        stop_id: id of the token that ends the answer of the last assistant turn.
        stop_ids: `stop_id`, the token that ends a turn with tool calls, and the tokenizer's
            end-of-text id: any of them ends a generated answer.
        strategy: `whole` where one row holds all assistant turns; `per_turn` where the template
            changes earlier turns, so that each assistant turn makes a row of its own.
        strategy_reason: why not `whole`, with an excerpt; empty where it is.
        trim: white space around answers that template and tokenizer do not keep.
        system: what becomes of a system message at the beginning.
        thinking: whether the template has a place for reasoning before an answer.
        no_calls: why the template cannot write tool calls; empty where it can.

    Raises:
        InputError: as `prompt_styles.choose_template`, or `template-refused` with the reason.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str = "",
        date: datetime.date | None = None,
        style: str = AUTO,
    ) -> None:
        self.name = name or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
        self._tokenizer = tokenizer
        self.undated, self.origin = choose_template(tokenizer, style, self.name)
        self.date = (date or datetime.date.today()) if prints_date(self.undated) else None
        self.text = self.undated if self.date is None else pin_date(self.undated, self.date)
        self._render = Renderer(tokenizer, self.text)
        try:
            facts = probe(self._render, TextTokenizer(tokenizer))
        except RowRejected as rejected:
            raise InputError(
                f"the chat template of {self.name} cannot be trained on exactly",
                f"{rejected.reason}: {rejected.detail}",
                "choose another base model, or a template whose generation prompt is a prefix of "
                "the finished turn",
                "template-refused",
            ) from rejected
        self._encoder = facts.encoder
        self._layout = facts.encoder.layout
        self.stop_id = self._layout.ending.stop_id
        self.stop_ids = facts.encoder.stop_ids
        self.strategy: Strategy = facts.strategy
        self.strategy_reason = facts.strategy_reason
        self.trim: Trim = facts.trim
        self.system: System = facts.system
        self.thinking = facts.thinking
        self.no_calls = self._layout.no_calls

    @property
    def trims(self) -> bool:
        """Whether `encode` strips white space from around answers, because it would be lost."""
        return bool(self.trim)

    def strips(self, messages: Sequence[Message]) -> bool:
        """Whether `encode` takes white space away from an answer of these messages."""
        return any(self._stripped(message) is not message for message in messages)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool,
    ) -> str:
        """The text of `messages`; RowRejected where the template refuses.

        A system message at the beginning stands before the first user content where the template
        has no other place for it.
        """
        chat = [message.as_dict() for message in self.with_system(messages)]
        return self._render(chat, tools=tools, add_generation_prompt=add_generation_prompt)

    def prompt_ids(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Ids of the prompt for the next assistant turn; raises as `render` does."""
        text = self.render(messages, tools=tools, add_generation_prompt=True)
        return tuple(self._encoder.tokenizer.tokenize(text).ids)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        train_on: TrainOn = "all",
        source: str = "",
        row: int = 0,
    ) -> list[EncodedRow]:
        """The training rows of one conversation, each verified.

        Args:
            messages: the turns. White space around answers that would be lost is taken away first
                (`strips` says whether); nothing else is changed.
            tools: descriptions of the tools, as the template reads them.
            train_on: all assistant turns with a loss weight, only the last of them, or every token
                of the rendered conversation.
            source, row: where the conversation came from.

        Returns:
            One row; or one per trained turn, where earlier turns would render differently (by the
            template, or by a thinking block in this conversation's own content).

        Raises:
            RowRejected: no row can be made that trains exactly the content and its stop token.
        """
        conversation = Conversation(tuple(messages), source, row, tools=tuple(tools))
        (found,) = self.encode_batch([conversation], train_on=train_on)
        if isinstance(found, RowRejected):
            raise found
        return found

    def encode_batch(
        self, conversations: Sequence[Conversation], *, train_on: TrainOn = "all"
    ) -> list[list[EncodedRow] | RowRejected]:
        """As `encode`, for many conversations at once; what is rejected is returned, not raised.

        The texts are tokenised together, on all cores.
        """
        ready = [self._ready(conversation, train_on) for conversation in conversations]
        chats = {at: chat for at, chat in enumerate(ready) if isinstance(chat, Chat)}
        rows: dict[int, list[EncodedRow] | RowRejected] = {}
        if self.strategy == "whole":
            rows |= self._rows(chats, whole=True)
        # The content of a conversation can change its earlier turns: then each makes its own row.
        rest = {at: chat for at, chat in chats.items() if not isinstance(rows.get(at), list)}
        rows |= self._rows(rest, whole=False)
        return [
            each if isinstance(each, RowRejected) else rows[at] for at, each in enumerate(ready)
        ]

    def encode_document(
        self, text: str, max_length: int, *, source: str = "", row: int = 0
    ) -> list[EncodedRow]:
        """Plain text in rows of at most `max_length` tokens; see `tokens.encode_document`."""
        return encode_document(self._tokenizer, text, max_length, source=source, row=row)

    def parse(self, ids: Sequence[int], *, finished: bool = True) -> str:
        """The answer in generated `ids`, up to the first stop token.

        Undoes `encode`: the trained ids of a turn give its content. Where the template opens an
        answer with text of its own (a thinking block, a channel name), only what stands after the
        end of that opening is kept, so thinking that was generated is dropped as well. Tool calls
        are given back as the template writes them. Of an answer that is not finished, nothing is
        kept while it may still be thinking.
        """
        stop = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self._encoder.decode(ids[:stop])
        if not finished and stop == len(ids) and self._layout.still_opening(text):
            return ""
        ended_by = ids[stop] if stop < len(ids) else self.stop_id
        return self._layout.answer_in(text, ended_by)

    def lock(self, fixed_prompts: Sequence[Sequence[Message]]) -> dict[str, Any]:
        """What `verify_lock` compares: JSON-able, with the prompt ids of `fixed_prompts`."""
        prompts = [
            {"messages": [m.as_dict() for m in prompt], "ids": list(self.prompt_ids(prompt))}
            for prompt in fixed_prompts
        ]
        return {
            "template_sha256": hashlib.sha256(self.undated.encode()).hexdigest(),
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

    def _rows(
        self, chats: Mapping[int, Chat], *, whole: bool
    ) -> dict[int, list[EncodedRow] | RowRejected]:
        encoded = self._encoder.rows(list(chats.values()), whole=whole)
        return dict(zip(chats, encoded, strict=True))

    def _ready(self, conversation: Conversation, train_on: TrainOn) -> Chat | RowRejected:
        """The conversation as it is rendered, with the turns that are trained."""
        try:
            messages = self.with_system([self._stripped(each) for each in conversation.messages])
            turns = None if train_on == "everything" else _trained_turns(messages, train_on)
        except RowRejected as rejected:
            return rejected
        return Chat(messages, turns, conversation.tools, conversation.source, conversation.row)

    def with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages as the template can hold them: without a place for a system message, its
        words stand before those of the first user turn. Raises RowRejected where there is none."""
        if self.system == "native" or not messages or messages[0].role != "system":
            return tuple(messages)
        system, *turns = messages
        for at, turn in enumerate(turns):
            if turn.role == "user":
                content = "\n\n".join(filter(None, (system.content, turn.content)))
                turns[at] = replace(turn, content=content, spans=())
                return tuple(turns)
        raise RowRejected("system-not-rendered", "no user turn that it could be put before")

    def _stripped(self, message: Message) -> Message:
        """The message without white space that would be lost; itself where there is none."""
        if message.role != "assistant":
            return message
        content = self.trim.of(message.content)
        if content == message.content:
            return message
        begin = message.content.index(content)
        return replace(message, content=content, spans=_cut(message.spans, begin, len(content)))


def _cut(
    spans: Sequence[tuple[str, float]], begin: int, length: int
) -> tuple[tuple[str, float], ...]:
    """The pieces of a text from the character `begin` on, `length` characters of them."""
    kept = []
    for piece, weight in spans:
        inside = piece[max(0, begin) : max(0, begin + length)]
        begin -= len(piece)
        if inside:
            kept.append((inside, weight))
    return tuple(kept)


def _trained_turns(messages: Sequence[Message], train_on: TrainOn) -> tuple[int, ...]:
    """Indices of the turns that are trained; RowRejected where there are none."""
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise RowRejected("no-assistant-turn", f"{len(messages)} messages, none by the assistant")
    for message in messages:
        if message.role != "assistant" and _weighs(message):
            raise RowRejected("weight-on-other-role", f"a loss weight on a turn by {message.role}")
        if message.spans and "".join(text for text, _ in message.spans) != message.content:
            raise RowRejected("spans-differ", "the pieces of a turn are not its content")
    turns = tuple(at for at in answers if _weighs(messages[at]))
    if train_on == "last":
        turns = tuple(at for at in turns if at == answers[-1])
    if not turns:
        raise RowRejected("nothing-trained", "every trained assistant turn has the loss weight 0")
    return turns


def _weighs(message: Message) -> bool:
    """Whether anything of a turn enters the loss."""
    return message.weight != 0 or any(weight != 0 for _, weight in message.spans)
