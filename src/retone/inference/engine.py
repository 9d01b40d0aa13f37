"""Answers from a model: in batches, or streamed; of the tuned model, the base model, or both."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from retone.chat_template import ChatTemplate
from retone.inference.decoding import Decoder, Row, adapter_of
from retone.inference.sampling import Answer, Messages, Sampling
from retone.models.partial import base_or_tuned
from retone.rendering import RowRejected

Ids = Sequence[int]


class Parse(Protocol):
    """From the ids of an answer to its text; of one that is not finished, only what is sure."""

    def __call__(self, ids: Ids, *, finished: bool = True) -> str:
        """The text."""


class Engine:
    """A loaded model with its tokenizer and template.

    Args:
        model: a transformers model, with or without a peft adapter.
        tokenizer: its tokenizer.
        template: the verified chat template.
        batch_size: prompts answered together.
    """

    def __init__(
        self, model: Any, tokenizer: Any, template: ChatTemplate, *, batch_size: int = 32
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.batch_size = batch_size

    def tuned(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
        """Answers of the model as it is (a `Responder`)."""
        return self._respond(prompts, sampling, tuned=True)

    def base(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
        """Answers with the adapter switched off (a `Responder`)."""
        return self._respond(prompts, sampling, tuned=False)

    def continued(
        self, prompts: Sequence[Messages], sampling: Sampling, *, tuned: bool
    ) -> list[Answer]:
        """What the model goes on with behind each prompt's last words, without any template."""
        adapter = adapter_of(tuned=tuned)
        rows = [Row(self.text_ids(messages[-1].content), sampling, adapter) for messages in prompts]
        return self._answers(rows, self.plain_text)

    def stream(
        self, messages: Messages, sampling: Sampling, *, tuned: Sequence[bool] = (True,)
    ) -> Generator[tuple[int, str]]:
        """Pieces of answers as they are written; closing the iterator stops the model.

        Args:
            messages: the prompt.
            sampling: how tokens are picked.
            tuned: one answer for each, by the tuned or by the base model.

        Yields:
            Which of the answers, and what comes next of it; never an empty piece.

        Raises:
            RowRejected: as `prompt_ids`.
        """
        prompt = self.prompt_ids(messages)
        rows = [Row(prompt, sampling, adapter_of(tuned=one)) for one in tuned]
        texts = [TextStream(self.template.parse, sampling.stop) for _ in rows]
        decoder = self.decoder()
        decoder.join(rows)
        while decoder.rows:
            for at, (row, text) in enumerate(zip(rows, texts, strict=True)):
                piece = text.next(row)
                if piece:
                    yield at, piece
            decoder.step()

    def decoder(self) -> Decoder:
        """A new decoding loop over this model."""
        return Decoder(self.model, self.template.stop_ids, self.template.stop_id)

    @property
    def context(self) -> int:
        """Tokens that the model can read and write together."""
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 20))

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory of one token's keys and values."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize)

    def prompt_ids(self, messages: Messages) -> tuple[int, ...]:
        """Ids of a prompt that leaves room for an answer.

        Raises:
            RowRejected: the template refuses the messages, or they are too long for the model.
        """
        return self.fitting(self.template.prompt_ids(messages))

    def fitting(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids of a prompt; RowRejected where they leave no room for an answer."""
        if len(ids) >= self.context:
            raise RowRejected(
                "context_length_exceeded",  # the code of the OpenAI API, which its clients know
                f"the prompt has {len(ids)} tokens; prompt and answer have room for {self.context}",
            )
        return ids

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text that is to be gone on with."""
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        ids = ids[:-1] if ids and ids[-1] in self.template.stop_ids else ids
        return tuple(ids or [self.template.stop_id])

    def plain_text(self, ids: Ids, *, finished: bool = True) -> str:
        """The text of ids that no template surrounds (a `Parse`)."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def answering(self, *, tuned: bool) -> AbstractContextManager[Any]:
        """Inside the block the model is the tuned one, or the base model."""
        return base_or_tuned(self.model, tuned=tuned)

    def _respond(
        self, prompts: Sequence[Messages], sampling: Sampling, *, tuned: bool
    ) -> list[Answer]:
        adapter = adapter_of(tuned=tuned)
        rows = [Row(self.template.prompt_ids(each), sampling, adapter) for each in prompts]
        return self._answers(rows, self.template.parse)

    def _answers(self, rows: Sequence[Row], parse: Parse) -> list[Answer]:
        """What rows say when all are finished; neighbours in length together, to pad little."""
        order = sorted(rows, key=lambda row: len(row.prompt))
        for start in range(0, len(order), self.batch_size):
            decoder = self.decoder()
            together = order[start : start + self.batch_size]
            texts = [(row, TextStream(parse, row.sampling.stop)) for row in together]
            decoder.join(together)
            while decoder.rows:
                for row, text in texts:
                    if row.sampling.stop:  # else only the model itself ends it
                        text.next(row)
                decoder.step()
        return [answer_of(row, parse) for row in rows]


class TextStream:
    """The pieces of an answer that are sure while it is being written.

    Args:
        parse: ids so far -> text so far.
        stop: texts that end the answer; a piece that may be the beginning of one is held back.
    """

    def __init__(self, parse: Parse, stop: Sequence[str] = ()) -> None:
        self._parse = parse
        self._stop = tuple(stop)
        self._given = 0  # characters
        self._ended = False

    def next(self, row: Row) -> str:
        """What is new; finishes the row at a stop text."""
        if self._ended:
            return ""
        text, cut = until(self._parse(row.ids, finished=row.finished), self._stop)
        row.finished = row.finished or cut
        row.stopped = row.stopped or cut
        self._ended = row.finished
        sure = len(text) if row.finished else len(text) - _held(text, self._stop)
        piece = text[self._given : sure]
        self._given = max(self._given, sure)
        return piece


def answer_of(row: Row, parse: Parse) -> Answer:
    """What a finished row says."""
    text, cut = until(parse(row.ids), row.sampling.stop)
    return Answer(text, len(row.ids), row.stopped or cut)


def until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts, and whether there was one."""
    places = [at for at in (text.find(end) for end in stop) if at >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _held(text: str, stop: Sequence[str]) -> int:
    """Characters at the end that may be half a character, or the beginning of a stop text."""
    halves = len(text) - len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    for length in range(min(max(map(len, stop), default=1) - 1, len(text)), halves, -1):
        if any(end.startswith(text[-length:]) for end in stop):
            return length
    return halves
