"""Training rows from conversations: rendered, tokenised together, each trained turn verified."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from retone.answer_layout import Layout, Turn, check_rendered, locate
from retone.batch import EncodedRow
from retone.conversation import Message
from retone.rendering import EXCERPT, Renderer, RowRejected, difference
from retone.tokens import TextTokenizer, Tokens


@dataclass(frozen=True)
class Chat:
    """Messages ready to be rendered.

    Attributes:
        messages: the turns, as they are rendered.
        turns: indices of the turns that are trained; None trains every token.
        tools: descriptions of the tools.
        source, row: as in `Conversation`.
    """

    messages: tuple[Message, ...]
    turns: tuple[int, ...] | None
    tools: tuple[dict[str, Any], ...] = ()
    source: str = ""
    row: int = 0

    def by_turn(self) -> list[Chat]:
        """A chat for each trained turn, which ends with it."""
        if self.turns is None:
            return [self]
        return [
            replace(self, messages=self.messages[: turn + 1], turns=(turn,)) for turn in self.turns
        ]


class _Draft(NamedTuple):
    """A rendered row; `turns` is None where every token is trained."""

    chat: Chat
    text: str
    turns: list[Turn] | None


class RowEncoder:
    """Makes rows with one renderer, tokenizer and layout.

    Args:
        render: the template.
        tokenizer: turns its text into tokens.
        layout: what the template writes around answers.

    Attributes:
        stop_ids: tokens that end a generated answer; none may stand inside of one.
        context: tokens to decode an answer after (see `template_probe`).
    """

    def __init__(self, render: Renderer, tokenizer: TextTokenizer, layout: Layout) -> None:
        self.render = render
        self.tokenizer = tokenizer
        self.layout = layout
        self.stop_ids = layout.stop_ids | tokenizer.end_of_text
        self.context: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated `ids`."""
        return self.tokenizer.decode(ids, self.context)

    def row(self, messages: Sequence[Message], turns: Sequence[int]) -> EncodedRow:
        """One row that trains the assistant turns at `turns`; RowRejected where it cannot."""
        (found,) = self.rows([Chat(tuple(messages), tuple(turns))], whole=True)
        if isinstance(found, RowRejected):
            raise found
        return found[0]

    def rows(self, chats: Sequence[Chat], *, whole: bool) -> list[list[EncodedRow] | RowRejected]:
        """The rows of each chat, or why it has none; all texts are tokenised in one call.

        Args:
            chats: what to encode.
            whole: one row for all trained turns of a chat, not one for each.
        """
        drafts = [self._drafts(chat, whole) for chat in chats]
        texts = [
            draft.text for made in drafts if not isinstance(made, RowRejected) for draft in made
        ]
        tokens = iter(self.tokenizer.tokenize_all(texts))
        found: list[list[EncodedRow] | RowRejected] = []
        for made in drafts:
            if isinstance(made, RowRejected):
                found.append(made)
                continue
            pairs = [(draft, next(tokens)) for draft in made]
            try:
                found.append([self._row(draft, each) for draft, each in pairs])
            except RowRejected as rejected:
                found.append(rejected)
        return found

    def _drafts(self, chat: Chat, whole: bool) -> list[_Draft] | RowRejected:
        try:
            return [self._draft(part) for part in ([chat] if whole else chat.by_turn())]
        except RowRejected as rejected:
            return rejected

    def _draft(self, chat: Chat) -> _Draft:
        """The text of a chat with its trained turns found in it."""
        dicts = [message.as_dict() for message in chat.messages]
        text = self.render(dicts, tools=chat.tools, add_generation_prompt=False)
        check_rendered(chat.messages, chat.tools, text)
        if chat.turns is None:
            return _Draft(chat, text, None)
        return _Draft(chat, text, [self._turn(chat, dicts, at, text) for at in chat.turns])

    def _turn(self, chat: Chat, dicts: list[dict[str, Any]], at: int, row: str) -> Turn:
        """Where the turn `at` stands in the text of its row."""
        if at == 0:
            raise RowRejected("no-prompt", "the conversation begins with a trained assistant turn")
        prompt = self.render(dicts[:at], tools=chat.tools, add_generation_prompt=True)
        last = at == len(dicts) - 1
        text = row
        if not last:
            text = self.render(dicts[: at + 1], tools=chat.tools, add_generation_prompt=False)
        turn = locate(prompt, text, chat.messages[at], self.layout)
        if not last and not row.startswith(text[: turn.stop]):
            raise RowRejected("earlier-turn-changed", difference(text, row))
        return turn

    def _row(self, draft: _Draft, tokens: Tokens | RowRejected) -> EncodedRow:
        """The row of a draft; RowRejected where its tokens do not say what its text says."""
        if isinstance(tokens, RowRejected):
            raise tokens
        length = len(tokens)
        if draft.turns is None and length < 2:
            raise RowRejected("nothing-trained", f"{length} tokens, none with another before it")
        weights = [0.0] + [1.0 if draft.turns is None else 0.0] * (length - 1)
        for turn in draft.turns or ():
            first, stop = self._span(turn, tokens)
            weights[first : stop + 1] = _weights(turn, tokens, first, stop)
        return EncodedRow(tuple(tokens.ids), tuple(weights), draft.chat.source, draft.chat.row)

    def _span(self, turn: Turn, row: Tokens) -> tuple[int, int]:
        """First trained token of a turn and its stop token, as indices into `row`."""
        first = self.tokenizer.prompt_length(row, turn.start)
        stop = row.before(turn.stop)
        if stop == len(row) or row.place(stop)[0] != turn.stop or row.ids[stop] != turn.stop_id:
            after = row.text[turn.stop :][:EXCERPT]
            raise RowRejected("no-stop-token", f"the answer is followed by {after!r}")
        self._check_answer(row.ids[first:stop], row.text[turn.start : turn.stop], turn.message)
        return first, stop

    def _check_answer(self, ids: Sequence[int], written: str, message: Message) -> None:
        """RowRejected where generating `ids` would not give `written`, or not this message."""
        content = message.content
        if not self.stop_ids.isdisjoint(ids):
            found = f"it would end inside {written[:EXCERPT]!r}"
            raise RowRejected("stop-token-in-answer", found)
        decoded = self.decode(ids)
        if decoded != written:
            raise RowRejected("tokens-do-not-invert", difference(written, decoded))
        if message.tool_calls:
            return  # read back as they are written
        parsed = self.layout.answer_in(decoded, self.layout.ending.stop_id)
        # A content that brings its own thinking block is read back without it.
        own_thinking = self.layout.marker and content == written.removesuffix(self.layout.lead)
        if parsed != content and not own_thinking:
            raise RowRejected("tokens-do-not-invert", difference(content, parsed))


def _weights(turn: Turn, row: Tokens, first: int, stop: int) -> list[float]:
    """Loss weights of the tokens from `first` to `stop`, the stop token included.

    A token has the weight of the piece that its first character belongs to; what the template
    writes around the content has the weight of the turn.
    """
    weights = [turn.message.weight] * (stop + 1 - first)
    if not turn.message.spans:
        return weights
    # Some tokenizers leave the space at the beginning of a token out of its characters.
    starts = [min(row.place(at)[0], row.place(at - 1)[1]) for at in range(first, stop)]
    begin = turn.content
    for piece, weight in turn.message.spans:
        end = begin + len(piece)
        at, until = bisect_left(starts, begin), bisect_left(starts, end)
        weights[at:until] = [weight] * (until - at)
        begin = end
    return weights
