"""Answers from a model: greedy or sampled, in batches or streamed, tuned or not."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from threading import Event, Thread
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from retone.chat_template import ChatTemplate
from retone.conversation import Message
from retone.data.batching import common_prefix
from retone.models.partial import has_plain_cache, leading_positions, prefix_cache

Messages = Sequence[Message]


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0 takes the likeliest token (greedy).
        top_p: smallest set of tokens with this probability mass (Holtzman et al. 2019,
            arXiv:1904.09751); 1 keeps all.
        seed: of the sampling; the same seed gives the same answer.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: the parsed answer, without end token.
        tokens: tokens generated, the end token included.
        stopped: True when it ended by itself, False when cut at max_new_tokens.
    """

    text: str
    tokens: int
    stopped: bool


# The one callable type: tuned model, base model, baselines, teacher and judge are all one.
Responder = Callable[[Sequence[Messages], Sampling], list[Answer]]


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
        return self._respond(prompts, sampling)

    def base(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
        """Answers with the adapter switched off (a `Responder`)."""
        with self.answering(tuned=False):
            return self._respond(prompts, sampling)

    def continued(
        self, prompts: Sequence[Messages], sampling: Sampling, *, tuned: bool
    ) -> list[Answer]:
        """What the model goes on with behind each prompt's last words, without any template."""
        encoded = []
        for messages in prompts:
            ids = self.tokenizer(messages[-1].content, verbose=False)["input_ids"]
            ids = ids[:-1] if ids and ids[-1] in self.template.stop_ids else ids
            encoded.append(tuple(ids or [self.template.stop_id]))

        def parse(ids: list[int]) -> str:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))

        with self.answering(tuned=tuned):
            return self._answers(encoded, sampling, parse)

    def stream(
        self, messages: Messages, sampling: Sampling, *, tuned: bool = True
    ) -> Generator[str]:
        """Pieces of one answer as they are written; closing the iterator stops the model."""
        ids, mask = self._padded([self.template.prompt_ids(messages)])
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600
        )
        stop = Event()
        failed: list[BaseException] = []

        def write() -> None:
            try:
                with self.answering(tuned=tuned):
                    self._generate(ids, mask, sampling, streamer=streamer, stop=stop)
            except BaseException as error:  # handed over to the reading thread
                failed.append(error)
                streamer.end()

        writer = Thread(target=write, daemon=True)
        writer.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            stop.set()
            writer.join()
        if failed:
            raise failed[0]

    def _respond(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
        encoded = [self.template.prompt_ids(messages) for messages in prompts]
        return self._answers(encoded, sampling, self.template.parse)

    def _answers(
        self,
        encoded: Sequence[tuple[int, ...]],
        sampling: Sampling,
        parse: Callable[[list[int]], str],
    ) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for picked in self._batches([len(ids) for ids in encoded]):
            rows = [encoded[index] for index in picked]
            shared = self._shared_prefix(rows)
            ids, mask = self._padded(rows, shared)
            output = self._generate(ids, mask, sampling, shared=shared)[:, ids.shape[1] :]
            for index, row in zip(picked, output.tolist(), strict=True):
                ends = [at for at, token in enumerate(row) if token in self.template.stop_ids]
                ids = row[: ends[0] + 1] if ends else row
                answers[index] = Answer(parse(ids), len(ids), bool(ends))
        return [answers[index] for index in range(len(encoded))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of prompts that are answered together: neighbours in length, to pad little.

        Nothing is padded behind learned embeddings: peft takes their positions from the place.
        """
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        if leading_positions(self.model):
            groups = [list(group) for _, group in groupby(order, key=lambda index: lengths[index])]
        else:
            groups = [order]
        for group in groups:
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _shared_prefix(self, rows: Sequence[tuple[int, ...]]) -> int:
        """Leading tokens that are computed once for all rows; the last token is each row's own."""
        if len(rows) < 2 or not has_plain_cache(self.model):
            return 0
        return min(common_prefix(rows), min(map(len, rows)) - 1)

    def _padded(
        self, rows: Sequence[Sequence[int]], shared: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, padded between the shared prefix and the rest: [batch, seq]."""
        longest = max(map(len, rows))
        pad = self.template.stop_id
        ids, mask = [], []
        for row in rows:
            missing = longest - len(row)
            ids.append([*row[:shared], *[pad] * missing, *row[shared:]])
            mask.append([1] * shared + [0] * missing + [1] * (len(row) - shared))
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    @torch.no_grad()
    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        sampling: Sampling,
        *,
        shared: int = 0,
        streamer: TextIteratorStreamer | None = None,
        stop: Event | None = None,
    ) -> torch.Tensor:
        """Prompt and answer ids [batch, seq + new]."""
        greedy = sampling.temperature == 0
        picking: dict[str, Any] = (
            {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if greedy
            else {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        )
        torch.manual_seed(sampling.seed)
        criteria = StoppingCriteriaList([_StopWhen(stop)] if stop else [])
        if shared:
            cache = prefix_cache(self.model, ids[:1, :shared], len(ids))
            picking["past_key_values"] = cache
        output: torch.Tensor = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(self.template.stop_ids),
            pad_token_id=self.template.stop_id,
            streamer=streamer,
            stopping_criteria=criteria,
            **picking,
        )
        return output

    def answering(self, *, tuned: bool) -> AbstractContextManager[Any]:
        """Inside the block the model is the tuned one, or the base model."""
        if tuned or not hasattr(self.model, "disable_adapter"):
            return nullcontext()
        context: AbstractContextManager[Any] = self.model.disable_adapter()
        return context


class _StopWhen(StoppingCriteria):  # type: ignore[misc]
    """Ends generation when an event is set."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
