"""The OpenAI-compatible API: a thin layer of HTTP over `Service`.

    GET /v1/models   POST /v1/chat/completions   POST /v1/completions   GET /health   GET /metrics
    POST /v1/load_lora_adapter   POST /v1/unload_lora_adapter

The last two have the names and bodies that vLLM's server gives them (docs.vllm.ai, LoRA adapters).
Errors have the shape that the official clients read. There are no CORS headers, so pages of other
sites cannot read answers, and a request to another host name is refused.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from retone.conversation import Message
from retone.errors import RetoneError
from retone.inference import api_models, replies
from retone.inference.decoding import TUNED, Row
from retone.inference.engine import Parse
from retone.inference.limits import BodyLimit
from retone.inference.sampling import Sampling
from retone.inference.service import Busy, Event, Service, Ticket, Unloaded
from retone.rendering import RowRejected

OWN_NAMES = ["127.0.0.1", "localhost", "[::1]"]  # of this machine, as a browser sends them
MOST_BODY_BYTES = 10_000_000
STATUS = {"unknown-run": 404, "unknown-adapter": 404, "adapter-in-use": 409, "no-room": 503}


@dataclass(frozen=True)
class Voice:
    """How one of the models answers.

    Attributes:
        adapter: of its rows; None is the base model.
        usual: how answers are written where a request leaves it open.
        system: put before conversations that have no system message of their own.
    """

    adapter: str | None
    usual: Sampling
    system: str


@dataclass(frozen=True)
class Served:
    """What the API gives access to.

    Attributes:
        service: the model.
        tuned, base: names of the tuned and of the base model.
        usual, system: of both, as `Voice` has them.
        loaded: the adapters beside the run's own, by name.
    """

    service: Service
    tuned: str
    base: str
    usual: Sampling
    system: str = ""
    loaded: Mapping[str, Voice] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What a request can name as its model."""
        return list(dict.fromkeys([self.tuned, self.base, *self.loaded]))

    def voice(self, name: str) -> Voice:
        """The model of that name; Refused where there is none."""
        run = Voice(TUNED, self.usual, self.system)
        known = {self.base: replace(run, adapter=None), self.tuned: run, **self.loaded}
        if name not in known:
            told = f"there is no model {name!r}; there are {', '.join(self.names)}"
            raise Refused(404, told, param="model", code="model_not_found")
        return known[name]


@dataclass(frozen=True)
class Adapters:
    """Loads and unloads adapters while answers are written; each raises RetoneError.

    Attributes:
        load: gives an adapter (name, path) a name of the API.
        unload: takes it away again (name).
    """

    load: Callable[[str, str], None]
    unload: Callable[[str], None]


class Refused(Exception):
    """A request that is answered with an error of the client's making, or a full queue."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = replies.error(message, param=param, code=code, status=status)


@dataclass
class Asked:
    """The choices of one request while they are written."""

    tickets: list[Ticket] = field(default_factory=list)
    events: asyncio.Queue[tuple[int, Event]] = field(default_factory=asyncio.Queue)


def create_api(
    served: Callable[[], Served], adapters: Adapters, *, local: bool, token: str | None = None
) -> FastAPI:
    """The application.

    Args:
        served: what is served; asked for at each request.
        adapters: changes it.
        local: only this machine can reach it; other host names are refused then, so that no page
            of another site can ask it under a name of its own (DNS rebinding).
        token: what a request has to carry as bearer token; None asks for none.
    """

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refused(401, "the bearer token is missing or wrong", code="invalid_api_key")

    app = FastAPI(title="retone", docs_url=None, redoc_url=None)
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES)
    app.add_middleware(BodyLimit, most_bytes=MOST_BODY_BYTES)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(RetoneError, _retone_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get("/health", responses={503: {}})
    def health() -> JSONResponse:
        """Whether requests are answered."""
        now = served()
        ok = now.service.alive
        body = {"status": "ok" if ok else "stopped", "model": now.tuned}
        return JSONResponse(body, 200 if ok else 503)

    guarded = APIRouter(dependencies=[Depends(authorised)], responses=replies.ERRORS)
    _add_facts(guarded, served)
    _add_completions(guarded, served)
    _add_adapters(guarded, adapters)
    app.include_router(guarded)
    return app


def _add_facts(router: APIRouter, served: Callable[[], Served]) -> None:
    @router.get("/metrics")
    def metrics() -> PlainTextResponse:
        """Counters in the text format of Prometheus."""
        return PlainTextResponse(replies.metrics(asdict(served().service.counts)))

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        """The tuned model, the base model, and the adapters that are loaded."""
        return replies.models(served().names)


def _add_adapters(router: APIRouter, adapters: Adapters) -> None:
    @router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    def load(body: api_models.LoadAdapter) -> str:
        """Serve a further adapter of the base model, as `lora_name`."""
        adapters.load(body.lora_name, body.lora_path)
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    @router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    def unload(body: api_models.UnloadAdapter) -> str:
        """Let it go; refused while answers of it are not finished."""
        adapters.unload(body.lora_name)
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


def _add_completions(router: APIRouter, served: Callable[[], Served]) -> None:
    @router.post("/v1/chat/completions")
    async def chat(body: api_models.ChatRequest, request: Request) -> Response:
        """An answer to a conversation."""
        now = served()
        voice = now.voice(body.model)
        messages = [message.message() for message in body.messages]
        if voice.system and messages[0].role != "system":
            messages.insert(0, Message("system", voice.system))
        engine = now.service.engine
        with _accepted("messages"):
            prompt = engine.prompt_ids(messages)
        form = replies.ChatReply(body.model, engine, body.top)
        return await _answered(now, body, [prompt], engine.template.parse, form, request)

    @router.post("/v1/completions")
    async def complete(body: api_models.CompletionRequest, request: Request) -> Response:
        """What the model goes on with behind a text, without any template."""
        now = served()
        engine = now.service.engine
        with _accepted("prompt"):
            prompts = [engine.fitting(engine.text_ids(text)) for text in body.prompts]
        form = replies.TextReply(body.model, engine, body.top)
        return await _answered(now, body, prompts, engine.plain_text, form, request)


@contextmanager
def _accepted(param: str) -> Iterator[None]:
    """Inside the block a prompt that the template or the model refuses is an error 400."""
    try:
        yield
    except RowRejected as rejected:
        told = f"the model cannot be asked this: {rejected.detail or rejected.reason}"
        raise Refused(400, told, param=param, code=rejected.reason) from rejected


async def _answered(
    served: Served,
    body: api_models.Request,
    prompts: Sequence[tuple[int, ...]],
    parse: Parse,
    form: replies.Reply,
    request: Request,
) -> Response:
    """Queue the request; its answer whole, or as a stream of server-sent events."""
    asked = _asked(served.voice(body.model), body, prompts, parse)
    try:
        served.service.submit(asked.tickets)
    except Unloaded:
        told = f"{body.model!r} was unloaded"
        raise Refused(404, told, param="model", code="model_not_found") from None
    usage = body.stream_options is not None and body.stream_options.include_usage
    if body.stream:
        stream = _stream(served.service, asked, form, usage=usage)
        return StreamingResponse(stream, media_type="text/event-stream")
    gone = asyncio.create_task(_gone(request))
    try:
        fault = await _finished(asked, gone)
    finally:
        gone.cancel()
        served.service.cancel(asked.tickets)
    if fault is not None:
        return JSONResponse(replies.error(fault, code="model_failed", status=500), 500)
    return JSONResponse(form.whole(asked.tickets))


def _asked(
    voice: Voice, body: api_models.Request, prompts: Sequence[tuple[int, ...]], parse: Parse
) -> Asked:
    """A row for each choice of each prompt."""
    asked, loop = Asked(), asyncio.get_running_loop()

    def teller(at: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(asked.events.put_nowait, (at, event))

        return tell

    for prompt in prompts:
        for choice in range(body.n or 1):
            row = Row(prompt, body.sampling(voice.usual, choice), voice.adapter, body.top)
            asked.tickets.append(Ticket(row, parse, teller(len(asked.tickets))))
    return asked


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _finished(asked: Asked, gone: asyncio.Task[None]) -> str | None:
    """Wait for all choices, or until nobody waits for them; the fault, if there was one."""
    open_ = len(asked.tickets)
    while open_:
        event = asyncio.create_task(asked.events.get())
        done, _ = await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
        if event not in done:
            event.cancel()
            return "the client left"
        _, found = event.result()
        if found.fault:
            return found.fault
        open_ -= found.finished
    return None


async def _stream(
    service: Service, asked: Asked, form: replies.Reply, *, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; when the client leaves, the rows are given up."""
    open_ = len(asked.tickets)
    try:
        for at in range(open_):
            yield _sent(form.opening(at))
        while open_:
            at, event = await asked.events.get()
            if event.fault:
                yield _sent(replies.error(event.fault, code="model_failed", status=500))
                return
            open_ -= event.finished
            yield _sent(form.piece(at, asked.tickets[at], event))
        if usage:
            yield _sent(form.usage(asked.tickets))
        yield "data: [DONE]\n\n"
    finally:
        service.cancel(asked.tickets)


def _sent(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _refused(request: Request, refused: Exception) -> JSONResponse:
    assert isinstance(refused, Refused)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
    return JSONResponse(refused.body, refused.status, headers.get(refused.status))


async def _busy(request: Request, error: Exception) -> JSONResponse:
    told = "too many requests are waiting; try again"
    return await _refused(request, Refused(429, told, code="queue_full"))


async def _retone_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RetoneError)
    status = STATUS.get(error.code, 400)
    told = f"{error.problem}: {error.found} ({error.remedy})"
    return JSONResponse(replies.error(told, code=error.code, status=status), status)


async def _invalid(request: Request, invalid: Exception) -> JSONResponse:
    """All that is wrong with a request; nothing of its content is given back."""
    assert isinstance(invalid, RequestValidationError)
    found = [
        (".".join(str(part) for part in one["loc"] if part != "body"), str(one["msg"]))
        for one in invalid.errors()
    ]
    message = "; ".join(f"{place}: {what}" if place else what for place, what in found[:10])
    body = replies.error(message, param=found[0][0] or None, code="invalid_request", status=400)
    return JSONResponse(body, 400)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = replies.error(str(error.detail), code="http", status=error.status_code)
    return JSONResponse(body, error.status_code, error.headers)
