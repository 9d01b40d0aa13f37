"""Where a teacher model answers: an OpenAI-compatible server, or a model on this machine."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import math
import os
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from retone.errors import InputError, MachineError, nearest
from retone.inference.decoding import Row
from retone.inference.sampling import Sampling
from retone.inference.service import Event, Service, Ticket
from retone.rendering import RowRejected
from retone.teacher.asking import Again, Ask, NoAnswer, Price, Reply
from retone.teacher.reading import without_surrogates

MOST_TOKENS = 1 << 40  # of a request; a server that says more is not believed
MOST_BYTES = 4_000_000  # of an answer; a longer body is not read
LONGEST_WAIT = 600.0  # seconds; whoever asks for more is not waited for
CONNECTIONS = 16  # of one client
PASSING = (408, 409, 429)
# Fields that some servers refuse; a request goes without the one that was refused from then on.
OPTIONAL = ("response_format", "seed", "temperature", "max_tokens", "reasoning_effort")


@dataclass(frozen=True)
class Server:
    """A row of tables/endpoints.toml.

    Attributes:
        url: where its API begins.
        key: the environment variable of its key; empty where it needs none.
        source: where this is documented.
    """

    url: str
    key: str = ""
    source: str = ""


@cache
def servers() -> dict[str, Server]:
    """Servers known by a short name."""
    text = (files("retone") / "tables" / "endpoints.toml").read_text(encoding="utf-8")
    return {name: Server(**row) for name, row in tomllib.loads(text).items()}


def find_server(name: str) -> tuple[str, str]:
    """The address behind a short name or a URL, and the key for it, from the environment alone.

    Raises InputError: there is no such name, the URL is none, or its key is not set or is no key.
    """
    if name.startswith(("http://", "https://")):
        return _checked_url(name), _key_in("RETONE_TEACHER_KEY")
    known = servers()
    if name not in known:
        raise InputError(
            "there is no such teacher",
            f"{name}{nearest(name, known)}",
            f"one of local, {', '.join(known)}, or the URL of an OpenAI-compatible API",
            "unknown-endpoint",
        )
    server = known[name]
    key = _key_in(server.key) if server.key else ""
    if server.key and not key:
        raise InputError(
            "the teacher's key is missing",
            f"{name} asks for one, and {server.key} is not set",
            f"export {server.key}=...   (keys are read from the environment and never written)",
            "no-key",
        )
    return server.url, key


def _key_in(variable: str) -> str:
    """A key in the environment. Raises InputError where it could not stand in a header."""
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            "the teacher's key is none",
            f"{variable} holds spaces, line ends or letters that no key has",
            f"export {variable}=...   (the key alone)",
            "no-key",
        )
    return key


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            "the teacher's address is no URL", url, "http://127.0.0.1:8080/v1", "wrong-url"
        )
    return url


@dataclass
class OpenAIEndpoint:
    """A server that speaks the OpenAI API, through the official client.

    Attributes:
        url: where the API begins.
        model: the model's name there.
        key: goes into the request's header and nowhere else; what comes back is cleared of it.
        concurrency: most requests at once.
        price: what its tokens cost.
        refused: fields that it does not take.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 16
    price: Price = field(default_factory=Price)
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if find_spec("openai") is None:
            raise MachineError(
                "a teacher on a server needs the official client", "not installed: openai",
                "pip install 'retone[teacher]'", "no-openai",
            )  # fmt: skip
        import openai

        self._errors = openai
        # Several, since a client looks at each of its connections for every request. Repeating is
        # the business of `Teacher`, which also counts what it costs.
        self._clients = [
            openai.AsyncOpenAI(base_url=self.url, api_key=self.key or "none", max_retries=0)
            for _ in range(1 + (self.concurrency - 1) // CONNECTIONS)
        ]
        self._next = itertools.cycle(
            client.chat.completions.with_streaming_response for client in self._clients
        )

    @property
    def name(self) -> str:
        """The server, without what an address may hold of secrets."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}"

    async def answer(self, ask: Ask) -> Reply:
        """The reply; see `Endpoint`."""
        errors = self._errors
        fields = self._fields(ask)
        try:
            # As `extra_body` the client sends it as it is, and does not check it field by field.
            sent = next(self._next).create(model=self.model, messages=(), extra_body=fields)
            async with sent as response:
                body = await self._body(response)
        except Again:
            raise
        except errors.APIStatusError as error:
            if self._gives_up_a_field(error, fields):
                return await self.answer(ask)
            raise self._failure(error) from None
        except errors.APIConnectionError as error:
            # Its text may hold the header with the key; what was sent may have been answered.
            kind = type(error.__cause__ or error).__name__
            raise Again(f"no connection ({kind})", charged=kind != "ConnectError") from None
        except Exception as error:  # the transport's own, of an error's body that breaks off
            raise Again(f"the answer broke off ({type(error).__name__})", charged=True) from None
        return self._reply(body, ask)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()

    def _fields(self, ask: Ask) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [message.as_dict() for message in ask.messages],
            "temperature": ask.temperature,
            "max_tokens": ask.max_tokens,
            "seed": ask.seed,
            "reasoning_effort": "low",  # what a model thinks counts as tokens of its answer
        }
        if ask.schema is not None:
            named = {"name": "answer", "strict": True, "schema": dict(ask.schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": named}
        if "max_tokens" in self.refused:  # its newer name
            fields["max_completion_tokens"] = ask.max_tokens
        return {name: value for name, value in fields.items() if name not in self.refused}

    def _gives_up_a_field(self, error: Any, fields: Mapping[str, Any]) -> bool:
        """Whether a server refused a field that requests can go without, as they do from now on."""
        told = str(error.body or error)
        named = [name for name in OPTIONAL if name in told and name in fields]
        if error.status_code not in (400, 422) or not named:
            return False
        self.refused.add(named[0])
        return True

    async def _body(self, response: Any) -> bytes:
        """The whole body; Again where it is too long, is cut off, or is no JSON."""
        kind = response.headers.get("content-type", "")
        if "json" not in kind:
            raise Again(f"an answer of the type {self._clear(kind)[:60] or 'none'}", charged=True)
        body = bytearray()
        async for piece in response.iter_bytes():
            body += piece
            if len(body) > MOST_BYTES:
                raise Again(f"an answer longer than {MOST_BYTES} bytes", charged=True)
        return bytes(body)

    def _reply(self, body: bytes, ask: Ask) -> Reply:
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text = without_surrogates(choice["message"]["content"] or "")
            usage = answer.get("usage") or {}
            finished = choice.get("finish_reason") != "length"
            read = _counted(usage.get("prompt_tokens"), ask.likely_tokens[0])
            written = _counted(usage.get("completion_tokens"), len(text) // 3 + 1)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Again(
                f"an answer that cannot be read: {type(error).__name__}", charged=True
            ) from None
        if not text.strip():
            why = "" if finished else "; it was cut before it began: does this model think first?"
            raise NoAnswer(f"an empty answer{why}")
        return Reply(self._clear(text), read, written, finished=finished)

    def _failure(self, error: Any) -> Exception:
        """What an answer with an error status means."""
        printed = "".join(c if c.isprintable() else " " for c in str(error.message))
        status, told = error.status_code, self._clear(" ".join(printed.split()))[:300]
        if status in PASSING or status >= 500:
            after = retry_after(error.response.headers.get("retry-after", ""))
            if after is not None and after > LONGEST_WAIT:
                return NoAnswer(f"status {status}: asked to come back in {after:.0f} s")
            slower, charged = status in (429, 503, 529), status in (502, 504)
            return Again(f"status {status}: {told}", after=after, slower=slower, charged=charged)
        if status in (401, 402, 403, 404):
            return InputError(
                "the teacher refuses every request",
                f"{self.name}, model {self.model}: status {status}: {told}",
                "check the key in the environment and the model's name",
                "teacher-refuses",
            )
        return NoAnswer(f"status {status}: {told}")

    def _clear(self, text: str) -> str:
        """The text without the key, should a server give it back."""
        return text.replace(self.key, "[key]") if self.key else text


class LocalEndpoint:
    """A model on this machine.

    Args:
        service: answers many at once.
        model: its name, with what tells its weights apart.
    """

    name = "local"
    price = Price()

    def __init__(self, service: Service, model: str) -> None:
        self._service = service
        self.model = model
        self.concurrency = service.engine.batch_size

    async def answer(self, ask: Ask) -> Reply:
        """The reply; see `Endpoint`."""
        engine = self._service.engine
        try:
            prompt = engine.prompt_ids(ask.messages)
        except RowRejected as rejected:
            raise NoAnswer(rejected.detail or rejected.reason) from None
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()

        def tell(event: Event) -> None:
            if event.finished:
                loop.call_soon_threadsafe(_set, ended, event.fault)

        how = Sampling(ask.max_tokens, ask.temperature, seed=ask.seed)
        ticket = Ticket(Row(prompt, how), engine.template.parse, tell)
        self._service.submit([ticket])
        try:
            fault = await ended
        finally:
            self._service.cancel([ticket])
        if fault:
            raise NoAnswer(fault)
        answer = engine.template.parse(ticket.row.ids)
        return Reply(answer, len(prompt), len(ticket.row.ids), finished=ticket.row.stopped)

    async def close(self) -> None:
        """Let the model go."""
        self._service.close()


def _counted(value: Any, estimate: int) -> int:
    """A number of tokens as a server tells it; the estimate where that is none."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS
    return value if whole else estimate


def retry_after(header: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None for neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _set(ended: asyncio.Future[str], fault: str) -> None:
    if not ended.done():
        ended.set_result(fault)
