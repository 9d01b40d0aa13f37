"""What is asked of a teacher model and what comes back: the nouns of the client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from retone.conversation import Message


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        messages: the prompt.
        temperature: 0 takes the likeliest token.
        max_tokens: longest answer in tokens.
        seed: of the sampling, for endpoints that know it; it also tells apart requests that are
            otherwise alike and shall be answered anew.
        schema: a JSON schema that the answer is to follow, where the endpoint can hold it to one.
    """

    messages: tuple[Message, ...]
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int = 0
    schema: Mapping[str, Any] | None = None

    @property
    def prompt_sha256(self) -> str:
        """sha256 of the prompt alone, for the rows that come of it."""
        turns = [message.as_dict() for message in self.messages]
        return hashlib.sha256(json.dumps(turns, sort_keys=True).encode()).hexdigest()

    def key(self, endpoint: str, model: str) -> str:
        """sha256 of everything that decides the answer."""
        whole = [endpoint, model, self.prompt_sha256, self.temperature, self.max_tokens, self.seed,
                 self.schema]  # fmt: skip
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def likely_tokens(self) -> tuple[int, int]:
        """Tokens of the prompt, at three bytes a token, and the most that the answer may have."""
        size = sum(
            len(message.content.encode("utf-8", "replace")) + 24 for message in self.messages
        )
        return size // 3 + 8, self.max_tokens


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: what was written.
        prompt_tokens, completion_tokens: as the endpoint counts them; estimated where it does not.
        cost: US dollars.
        finished: False where it was cut at `max_tokens`.
        cached: it was asked and paid for before.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: float = 0.0
    finished: bool = True
    cached: bool = False


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class NoAnswer(Exception):
    """A request that got no answer; the text says why. Others are not affected."""


class Again(Exception):
    """A passing failure: the request may be repeated.

    Attributes:
        after: seconds to wait at least, as the server asked; None where it did not.
        slower: the server has too much to do, so fewer requests should be under way.
        charged: an answer was begun, so it may have been paid for.
    """

    def __init__(
        self, what: str, *, after: float | None = None, slower: bool = False, charged: bool = False
    ) -> None:
        super().__init__(what)
        self.after = after
        self.slower = slower
        self.charged = charged


class Endpoint(Protocol):
    """Where a model answers.

    Raises `Again`, `NoAnswer`, or RetoneError where no request can be answered at all.
    """

    @property
    def name(self) -> str:
        """The server."""

    @property
    def model(self) -> str:
        """The model's name there."""

    @property
    def concurrency(self) -> int:
        """Most requests at once."""

    @property
    def price(self) -> Price:
        """What its tokens cost."""

    async def answer(self, ask: Ask) -> Reply:
        """The reply, without its cost."""

    async def close(self) -> None:
        """Let connections and models go."""
