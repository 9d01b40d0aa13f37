"""The API with the official client, under load, and under malformed requests; the real model."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from record import record
from serving import NAME, Server, retone, served, short_run

openai = pytest.importorskip("openai", reason="this proof needs the official client")

TOKEN = "a token"
QUESTION = "I can't find my keys again."
SYSTEM = "Rewrite the sentence as Yoda would say it."
CONCURRENT = 200
MALFORMED = 10_000
FOUND: dict[str, Any] = {}  # what the JSON holds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("api")
    short_run(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with served(folder, "--api-only", RETONE_PASSWORD=TOKEN) as running:
        yield running


def client(server: Server, **settings: Any) -> Any:
    named = {"api_key": TOKEN, "max_retries": 0, "timeout": 600, **settings}
    return openai.OpenAI(base_url=f"{server.address}/v1", **named)


def asked(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": NAME, "messages": messages, "max_tokens": 40, **fields}


def metric(server: Server, name: str) -> float:
    request = urllib.request.Request(
        f"{server.address}/metrics", headers={"authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request) as found:
        lines = found.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"retone_{name}")))


def test_the_official_client(server: Server, folder: Path) -> None:
    api = client(server)
    names = [model.id for model in api.models.list()]
    assert names[0] == NAME
    assert len(names) == 2
    answer = api.chat.completions.create(**asked(logprobs=True, top_logprobs=3))
    said = answer.choices[0].message.content
    alone = retone(folder, "ask", NAME, QUESTION, "--offline").stdout.strip()
    assert said.strip() == alone
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert all(one.logprob == one.top_logprobs[0].logprob for one in tokens)  # greedy
    pieces = list(
        api.chat.completions.create(**asked(stream=True, stream_options={"include_usage": True}))
    )
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == said
    assert pieces[-1].usage == answer.usage
    base = api.chat.completions.create(**asked(model=names[1]))
    assert base.choices[0].message.content != said
    text = api.completions.create(model=names[1], prompt="Once upon a time", max_tokens=8)
    assert text.choices[0].text
    drawn = [
        api.chat.completions.create(**asked(n=3, temperature=0.9, seed=7)).choices for _ in range(2)
    ]
    assert [c.message.content for c in drawn[0]] == [c.message.content for c in drawn[1]]
    FOUND["client"] = {"version": openai.__version__, "answer": said, "pieces": len(pieces)}


def test_errors_are_the_client_s_own(server: Server) -> None:
    api = client(server)
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        api.chat.completions.create(**asked(model="gpt-5"))
    with pytest.raises(openai.BadRequestError, match="temperature"):
        api.chat.completions.create(**asked(temperature=9))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="not served"):
        api.chat.completions.create(**asked(tools=[tool]))
    messages = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError, match="room for"):
        api.chat.completions.create(**asked(messages=messages))
    with pytest.raises(openai.AuthenticationError):
        client(server, api_key="wrong").models.list()


def idle(server: Server) -> bool:
    for _ in range(300):
        if metric(server, "running") == 0:
            return True
        time.sleep(0.1)
    return False


def test_who_leaves_costs_nothing_more(server: Server) -> None:
    """A stream that is closed, and a whole answer that the client gives up on."""
    api = client(server)
    before = metric(server, "cancelled_total")
    long = asked(stream=True, max_tokens=4000, temperature=1.5, messages=[
        {"role": "system", "content": "Tell a story without an end."},
        {"role": "user", "content": "Tell me everything about the sea, at length."}])  # fmt: skip
    stream = api.chat.completions.create(**{**long, "model": api.models.list().data[1].id})
    for _ in zip(range(5), stream, strict=False):
        pass
    stream.close()
    assert idle(server)
    with pytest.raises(openai.APITimeoutError):
        client(server, timeout=0.5).chat.completions.create(**{**long, "stream": False, "n": 16})
    assert idle(server)
    cancelled = metric(server, "cancelled_total") - before
    assert cancelled >= 1
    FOUND["cancelled"] = cancelled


async def crowd(server: Server, count: int, tokens: int) -> tuple[Counter[str], set[str], float]:
    """How so many requests at once ended, what they were told, and the seconds."""
    api = openai.AsyncOpenAI(
        base_url=f"{server.address}/v1", api_key=TOKEN, max_retries=0, timeout=1800
    )
    ended: Counter[str] = Counter()
    said: set[str] = set()

    async def one(number: int) -> None:
        try:
            messages = [{"role": "user", "content": f"The cat has {number} toys."}]
            answer = await api.chat.completions.create(
                **asked(messages=messages, max_tokens=tokens)
            )
            said.add(f"{number}: {answer.choices[0].message.content}")
            ended["answered"] += 1
        except openai.RateLimitError:
            ended["told to wait"] += 1
        except openai.OpenAIError as error:
            ended[type(error).__name__] += 1

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    await api.close()
    return ended, said, time.perf_counter() - started


def test_two_hundred_at_once(server: Server) -> None:
    before = server.peak_bytes()
    ended, said, seconds = asyncio.run(crowd(server, CONCURRENT, 24))
    assert ended == {"answered": CONCURRENT}
    assert len(said) == CONCURRENT
    after = server.peak_bytes()
    assert after - before < 1e9
    again, _, _ = asyncio.run(crowd(server, CONCURRENT, 24))
    assert again == {"answered": CONCURRENT}
    assert server.peak_bytes() < 1.1 * after  # it stays where it is
    FOUND["concurrent"] = {
        "requests": CONCURRENT, "answered": ended["answered"], "seconds": seconds,
        "peak_bytes_before": before, "peak_bytes_after": after,
        "peak_bytes_after_twice": server.peak_bytes(),
    }  # fmt: skip
    more, _, _ = asyncio.run(crowd(server, 3 * CONCURRENT, 4))
    assert set(more) == {"answered", "told to wait"}  # more than may wait: nobody is lost
    assert more.total() == 3 * CONCURRENT
    FOUND["more_than_may_wait"] = dict(more)


def test_malformed_requests_are_refused(server: Server, folder: Path) -> None:
    """schemathesis makes them from the API's own schema, all of them wrong in some way."""
    pytest.importorskip("schemathesis", reason="this proof needs schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.address}/openapi.json",
        "--url", server.address, "--mode", "negative", "--phases", "fuzzing",
        "--max-examples", str(MALFORMED // 2 + 200), "--checks", "not_a_server_error",
        "--include-path-regex", "completions", "-H", f"Authorization: Bearer {TOKEN}",
        "--generation-deterministic", "--suppress-health-check", "all", "--no-color",
        "--request-timeout", "120",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    counted = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert counted, done.stdout[-3000:]
    sent = int(counted[1].replace(",", ""))
    assert done.returncode == 0, done.stdout[-3000:]
    assert sent >= MALFORMED, done.stdout[-2000:]
    assert metric(server, "faults_total") == 0
    with urllib.request.urlopen(f"{server.address}/health") as found:
        assert found.status == 200
    FOUND["malformed"] = {"sent": sent, "server_errors": 0}
    record("api", FOUND)
