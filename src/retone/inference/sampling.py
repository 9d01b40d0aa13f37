"""How the next token is picked, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from retone.conversation import Message

Messages = Sequence[Message]
GREEDY_BELOW = 1e-4  # temperatures under it would only overflow float32


@dataclass(frozen=True)
class Sampling:
    """How an answer is written.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0, and all below `GREEDY_BELOW`, takes the likeliest token.
        top_p: smallest set of tokens with this probability mass (Holtzman et al. 2019,
            arXiv:1904.09751); 1 keeps all.
        top_k: the likeliest tokens kept; 0 keeps all.
        repetition_penalty: divides the logits of tokens that came before (Keskar et al. 2019,
            arXiv:1909.05858); 1 changes nothing.
        seed: of the sampling; the same seed gives the same answer.
        stop: texts that end an answer; they are not part of it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


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


class Picker:
    """Picks the next tokens of one answer; its random numbers are its own.

    Args:
        sampling: how.
        device: where the logits are.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._greedy = sampling.temperature < GREEDY_BELOW
        self._generator = torch.Generator(device).manual_seed(sampling.seed)
        self._change = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._change.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self._greedy:
            return
        self._change.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._change.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._change.append(TopPLogitsWarper(sampling.top_p))

    @property
    def plain(self) -> bool:
        """Whether it takes the largest logit and nothing else."""
        return self._greedy and not self._change

    def pick(self, ids: Sequence[int], logits: Tensor) -> int:
        """The next token.

        Args:
            ids: prompt and answer so far.
            logits: float32 [vocabulary].
        """
        before = torch.tensor([ids], device=logits.device)
        changed = self._change(before, logits[None].clone())
        if self._greedy:
            return int(changed.argmax())
        likely = torch.softmax(changed[0], dim=-1)
        return int(torch.multinomial(likely, 1, generator=self._generator))


@dataclass(frozen=True)
class TokenChance:
    """How likely a model found the token that it wrote.

    Attributes:
        token: the token's id.
        log_probability: natural logarithm, before temperature and the rest.
        top: the likeliest tokens with theirs.
    """

    token: int
    log_probability: float
    top: tuple[tuple[int, float], ...]


def chance(logits: Tensor, token: int, top: int) -> TokenChance:
    """The log-probability of `token`, and of the `top` likeliest; logits float32 [vocabulary]."""
    every = torch.log_softmax(logits, dim=-1)
    best = every.topk(top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenChance(token, float(every[token]), tuple(pairs))
