"""One model behind different engines, asked the same: what the gate of an export compares.

OwnSpeaker      the run, as retone answers
PlainSpeaker    a folder, as plain transformers (and peft) would use it
LlamaSpeaker    a GGUF file, as llama.cpp runs it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from retone.conversation import Message
from retone.inference.decoding import Row
from retone.inference.engine import Engine
from retone.inference.llama_cpp import TOP, LlamaServer
from retone.inference.sampling import Messages, Sampling

Likely = dict[int, float]  # the likeliest next tokens -> log-probability in nats, likeliest first


class Speaker(Protocol):
    """A model with its tokenizer and template, behind the engine that will run it."""

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Ids of a chat prompt, as this engine renders it."""

    def prompt_tokens(self, messages: Messages) -> int:
        """Tokens that the model really reads for a chat prompt."""

    def complete(self, ids: Sequence[int], tokens: int) -> tuple[list[int], bool]:
        """What it writes greedily, maybe with the end token; whether it ended by itself."""

    def likely(self, ids: Sequence[int], forced: Sequence[int]) -> list[Likely]:
        """What it thinks comes next behind `ids`, and behind each further token of `forced`; empty
        where the engine does not tell."""


class OwnSpeaker:
    """A model in retone's engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def prompt_ids(self, messages: Messages) -> list[int]:
        """See `Speaker`; raises RowRejected as the template does."""
        return list(self._engine.prompt_ids(messages))

    def prompt_tokens(self, messages: Messages) -> int:
        """See `Speaker`."""
        return len(self.prompt_ids(messages))

    def complete(self, ids: Sequence[int], tokens: int) -> tuple[list[int], bool]:
        """See `Speaker`."""
        row = Row(tuple(ids), Sampling(max_new_tokens=tokens))
        decoder = self._engine.decoder()
        decoder.join([row])
        while decoder.rows:
            decoder.step()
        return list(row.ids), row.stopped

    def likely(self, ids: Sequence[int], forced: Sequence[int]) -> list[Likely]:
        """See `Speaker`."""
        return likely_of(self._engine.model, ids, forced)


class PlainSpeaker:
    """A model as transformers itself uses it: its tokenizer's template, its generation config.

    Args:
        model: what `from_pretrained` gave.
        tokenizer: of the same folder.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def prompt_ids(self, messages: Messages) -> list[int]:
        """See `Speaker`."""
        turns = [message.as_dict() for message in messages]
        ids = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(ids["input_ids"])

    def prompt_tokens(self, messages: Messages) -> int:
        """See `Speaker`."""
        return len(self.prompt_ids(messages))

    @torch.no_grad()
    def complete(self, ids: Sequence[int], tokens: int) -> tuple[list[int], bool]:
        """See `Speaker`; as the folder's generation config says, and nothing else."""
        prompt = torch.tensor([list(ids)], device=self._model.device)
        told = self._model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens
        )
        written = told[0, len(ids) :].tolist()
        ends = self._model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        return written, bool(written) and written[-1] in stops

    def likely(self, ids: Sequence[int], forced: Sequence[int]) -> list[Likely]:
        """See `Speaker`."""
        return likely_of(self._model, ids, forced)


class LlamaSpeaker:
    """A GGUF file in a running llama.cpp."""

    def __init__(self, server: LlamaServer) -> None:
        self._server = server

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """See `Speaker`: the template of the file, rendered by llama.cpp."""
        return self._server.prompt_ids(messages)

    def prompt_tokens(self, messages: Messages) -> int:
        """See `Speaker`: as its chat endpoint counts them."""
        return self._server.read_as(messages)

    def complete(self, ids: Sequence[int], tokens: int) -> tuple[list[int], bool]:
        """See `Speaker`."""
        return self._server.complete(ids, tokens)

    def likely(self, ids: Sequence[int], forced: Sequence[int]) -> list[Likely]:
        """See `Speaker`."""
        whole = [*ids, *forced]
        return [self._server.next_log_probs(whole[:end]) for end in range(len(ids), len(whole) + 1)]


@torch.no_grad()
def likely_of(model: Any, ids: Sequence[int], forced: Sequence[int]) -> list[Likely]:
    """`Speaker.likely` of a transformers model, in one forward pass."""
    whole = torch.tensor([[*ids, *forced]], device=model.device)
    logits = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits
    # From the end, for a learned prompt stands before the rest.
    last = logits[0, -len(forced) - 1 :].float().log_softmax(-1)
    values, tokens = last.topk(min(TOP, last.shape[-1]))
    rows = zip(tokens.tolist(), values.tolist(), strict=True)
    return [dict(zip(found, chances, strict=True)) for found, chances in rows]
