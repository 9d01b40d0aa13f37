"""What the OpenAI-compatible API says: answers, pieces of them, errors, counters."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from retone.inference.engine import Engine, answer_of
from retone.inference.sampling import TokenChance
from retone.inference.service import Event, Ticket

LEAST_LOG_PROBABILITY = -9999.0  # stands for minus infinity, which JSON cannot say
GAUGES = ("running", "waiting")

_ERROR = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "object"}},
            }
        }
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is wrong", **_ERROR},
    401: {"description": "the bearer token is missing or wrong", **_ERROR},
    404: {"description": "there is no such model", **_ERROR},
    409: {"description": "the adapter is in use", **_ERROR},
    413: {"description": "the body is too large", **_ERROR},
    422: {"description": "not used: a wrong request is answered with 400"},
    429: {"description": "too many are waiting", **_ERROR},
    503: {"description": "no run is open, or the memory is full", **_ERROR},
}


def error(message: str, *, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    text = message.encode("utf-8", "replace").decode()
    place = param.encode("utf-8", "replace").decode() if param else None
    return {
        "error": {
            "message": text,
            "type": kind.get(status, "invalid_request_error"),
            "param": place,
            "code": code,
        }
    }


def models(names: Sequence[str]) -> dict[str, Any]:
    """The body of GET /v1/models."""
    listed = [
        {"id": name, "object": "model", "created": 0, "owned_by": "retone"}
        for name in dict.fromkeys(names)
    ]
    return {"object": "list", "data": listed}


def metrics(counts: Mapping[str, float]) -> str:
    """Counters in the text format of Prometheus (exposition format 0.0.4)."""
    lines = []
    for name, value in counts.items():
        kind, end = ("gauge", "") if name in GAUGES else ("counter", "_total")
        lines += [f"# TYPE retone_{name}{end} {kind}", f"retone_{name}{end} {value:g}"]
    return "\n".join(lines) + "\n"


class Reply(ABC):
    """How one request is answered.

    Args:
        model: the name that was asked for.
        engine: reads single tokens.
        top: likeliest tokens told beside each; None tells nothing of probabilities.
    """

    kind = ""
    prefix = ""

    def __init__(self, model: str, engine: Engine, top: int | None) -> None:
        self._facts = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._engine = engine
        self._top = top
        self._told: dict[int, int] = {}  # tokens of each choice whose probabilities were sent

    def whole(self, tickets: Sequence[Ticket]) -> dict[str, Any]:
        """All choices, finished."""
        choices = []
        for at, ticket in enumerate(tickets):
            text = answer_of(ticket.row, ticket.parse).text
            chances = self.chances(ticket.row.chances)
            choices.append(
                {"index": at, **self.content(text), "logprobs": chances,
                 "finish_reason": _reason(ticket)}
            )  # fmt: skip
        counted = _usage(tickets)
        return {"object": self.kind, **self._facts, "choices": choices, "usage": counted}

    def opening(self, at: int) -> dict[str, Any]:
        """What comes before the first piece of a choice."""
        return self._chunk([{"index": at, **self.delta(None), "finish_reason": None}])

    def piece(self, at: int, ticket: Ticket, event: Event) -> dict[str, Any]:
        """What is new of a choice."""
        told = self._told.get(at, 0)
        fresh = ticket.row.chances[told:]
        self._told[at] = told + len(fresh)
        reason = _reason(ticket) if event.finished else None
        choice = {"index": at, **self.delta(event.piece), "finish_reason": reason}
        return self._chunk([{**choice, "logprobs": self.chances(fresh)}])

    def usage(self, tickets: Sequence[Ticket]) -> dict[str, Any]:
        """The last piece of a stream, for who asks for it."""
        return {**self._chunk([]), "usage": _usage(tickets)}

    @abstractmethod
    def content(self, text: str) -> dict[str, Any]:
        """The text of a finished choice."""

    @abstractmethod
    def delta(self, text: str | None) -> dict[str, Any]:
        """A piece of a choice; None opens it."""

    @abstractmethod
    def chances(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        """Log-probabilities of tokens."""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": self.kind, **self._facts, "choices": choices}


class ChatReply(Reply):
    """Answers of /v1/chat/completions."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def content(self, text: str) -> dict[str, Any]:
        """As a message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str | None) -> dict[str, Any]:
        """As a part of a message."""
        if text is None:
            return {"delta": {"role": "assistant", "content": ""}}
        return {"delta": {"content": text}}

    def chances(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        """One entry a token, with its bytes."""
        if self._top is None:
            return None
        found = []
        for one in chances:
            top = [self._token(token, value) for token, value in one.top]
            found.append({**self._token(one.token, one.log_probability), "top_logprobs": top})
        return {"content": found, "refusal": None}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        text = str(self._engine.tokenizer.decode([token]))
        chance = max(value, LEAST_LOG_PROBABILITY)
        return {"token": text, "logprob": chance, "bytes": list(text.encode())}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super()._chunk(choices), "object": "chat.completion.chunk"}


class TextReply(Reply):
    """Answers of /v1/completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def content(self, text: str) -> dict[str, Any]:
        """As plain text."""
        return {"text": text}

    def delta(self, text: str | None) -> dict[str, Any]:
        """As plain text."""
        return {"text": text or ""}

    def chances(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        """Lists over the tokens."""
        if self._top is None:
            return None
        decode = self._engine.tokenizer.decode
        return {
            "tokens": [str(decode([one.token])) for one in chances],
            "token_logprobs": [max(one.log_probability, LEAST_LOG_PROBABILITY) for one in chances],
            "top_logprobs": [
                {str(decode([token])): max(value, LEAST_LOG_PROBABILITY)
                 for token, value in one.top}
                for one in chances
            ],
            "text_offset": [],
        }  # fmt: skip


def _reason(ticket: Ticket) -> str:
    return "stop" if ticket.row.stopped else "length"


def _usage(tickets: Sequence[Ticket]) -> dict[str, int]:
    """Tokens read and written; a prompt with several choices is read for each, and counts once."""
    prompts = {ticket.row.prompt for ticket in tickets}
    read = sum(map(len, prompts))
    written = sum(len(ticket.row.ids) for ticket in tickets)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
