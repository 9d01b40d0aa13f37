"""The client of a teacher against a fake server: each answered once, paid for once, or reported."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra `teacher` is not installed")

from hypothesis import given
from hypothesis import strategies as st

import tiny
from retone.chat_template import ChatTemplate
from retone.conversation import Message
from retone.errors import InputError, MachineError
from retone.inference.engine import Engine
from retone.inference.sampling import Sampling
from retone.inference.service import Service
from retone.teacher import limits
from retone.teacher.asking import Ask, Price, Reply
from retone.teacher.client import Teacher
from retone.teacher.endpoints import LocalEndpoint, OpenAIEndpoint, find_server, retry_after
from retone.teacher.limits import Gate, Meter, OverBudget
from retone.teacher.pricing import find_price
from retone.teacher.store import Store
from teacher_process import KEY, logged, server

PRICE = Price(1, 2)


def ask(number: int, **fields: Any) -> Ask:
    return Ask((Message("user", f"Question {number}?"),), **fields)


def teacher(
    url: str, folder: Path, meter: Meter | None = None, *, concurrency: int = 32, **options: Any
) -> Teacher:
    endpoint = OpenAIEndpoint(url, "fake", key=KEY, concurrency=concurrency, price=PRICE)
    return Teacher(endpoint, Store(folder / "t.sqlite3"), meter or Meter(), **options)


def texts(running: Teacher, numbers: Any, **fields: Any) -> list[Any]:
    async def one(number: int) -> str:
        return (await running.ask(ask(number, **fields))).text

    return list(running.each(one, numbers))


def test_a_thousand_questions_through_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered once, or reported; none that was answered is asked again; nothing leaks."""
    monkeypatch.setattr(limits, "FIRST_BACK_OFF", 0.02)
    received = Counter[str]()  # not by the server's log: it may send what comes too late
    answer = OpenAIEndpoint.answer

    async def counted(endpoint: OpenAIEndpoint, ask: Ask) -> Reply:
        reply = await answer(endpoint, ask)
        received[ask.prompt_sha256] += 1
        return reply

    monkeypatch.setattr(OpenAIEndpoint, "answer", counted)
    log = tmp_path / "log.jsonl"
    with (
        server(log, "--faults", "0.3") as url,
        teacher(url, tmp_path, seconds=0.4, attempts=4) as running,
    ):
        found = texts(running, range(1000))
        meter = running.meter
    assert [one.item for one in found] == list(range(1000))
    answered = [one for one in found if one.made is not None]
    failed = [one for one in found if one.made is None]
    assert all(f"Question {one.item}?" in (one.made or "") for one in answered)
    assert len(answered) == meter.answered
    assert len(failed) == meter.failed
    assert 0 < len(failed) < 50
    assert all(one.fault.endswith("4 times") for one in failed)
    assert set(received.values()) == {1}
    assert len(received) == len(answered)
    assert {line["what"] for line in logged(log)} >= {
        "busy",
        "broken",
        "half",
        "endless",
        "silent",
        "html",
    }
    assert meter.reserved == pytest.approx(0)
    assert KEY not in repr(found) + repr(running.endpoint) + str(meter)
    for file in tmp_path.rglob("*"):
        assert KEY.encode() not in file.read_bytes()


def test_what_is_known_is_not_asked_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with server(log) as url:
        for number in (30, 50):
            with teacher(url, tmp_path) as running:
                found = texts(running, range(number))
            assert all(one.made for one in found)
        assert running.meter.cached == 30
        assert running.meter.spent == pytest.approx(50 * 40e-6)  # 20 tokens at 1, 10 at 2
        assert len(logged(log)) == 50
        with teacher(url, tmp_path) as running:
            texts(running, range(10), seed=1)  # another seed is another request
            assert running.meter.cached == 0


def test_answers_that_are_hardly_any(tmp_path: Path) -> None:
    """Nothing of them ends the others; what is kept can be written to a file."""
    log = tmp_path / "log.jsonl"
    choices = range(3, 43)  # the first ones are answered, so that it is not given up
    odd = server(log, "--answers", "teacher_server:odd")
    with odd as url, teacher(url, tmp_path, attempts=1, concurrency=1) as running:
        found = texts(running, choices)
    assert all(one.made is None for one in found if one.item % 8 < 3)
    kept = {one.item % 8: one.made for one in found if one.made}
    assert set(kept) == {3, 4, 5, 6, 7}
    assert kept[3] == "half \ufffd a pair"
    assert all(text.encode() for text in kept.values())
    assert 0 < running.meter.prompt_tokens < 10_000
    assert 0 < running.meter.spent < 0.1


def test_a_server_that_is_not_there_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_BACK_OFF", 0.01)
    gone = teacher("http://127.0.0.1:9/v1", tmp_path)
    with gone as running, pytest.raises(MachineError, match="answers nothing") as told:
        texts(running, range(1000))
    assert "ConnectError" in told.value.found
    assert running.meter.spent == 0
    assert running.meter.failed < 200


def test_what_was_spent_is_known_the_next_time(tmp_path: Path) -> None:
    """A budget is for an order, however often it is gone on with."""
    log = tmp_path / "log.jsonl"

    def sitting(url: str) -> float:
        with teacher(url, tmp_path, Meter(0.01), seconds=0.3, order="mine") as running:

            async def one(number: int) -> Reply:
                return await running.ask(ask(number, max_tokens=50))

            with suppress(OverBudget):
                list(running.each(one, range(100_000)))
        return running.meter.spent

    with server(log, "--faults", "0.2") as url:
        paid = [sitting(url) for _ in range(3)]
    assert paid == sorted(paid)
    assert 0.005 < paid[-1] <= 0.01
    answered = sum(line["what"] == "answered" for line in logged(log))
    assert answered * 40e-6 <= paid[-1]


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nb", "sk-\u00e9", "sk-\x01x"])
def test_a_key_that_is_none_is_told_without_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETONE_TEACHER_KEY", key)
    with pytest.raises(InputError, match="key is none") as told:
        find_server("http://127.0.0.1:1/v1")
    assert key not in str(told.value)
    monkeypatch.setenv("RETONE_TEACHER_KEY", f"{KEY}\r\n")
    assert find_server("http://127.0.0.1:1/v1")[1] == KEY


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://host:abc/v1", "https://"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(InputError, match="no URL"):
        find_server(url)


def test_a_broken_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.sqlite3").write_bytes(b"not a database at all, and longer than a header is" * 9)
    with pytest.raises(MachineError, match="kept answers"):
        Store(tmp_path / "t.sqlite3")


def test_the_same_request_at_the_same_time_is_sent_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with server(log, "--latency", "0.1") as url, teacher(url, tmp_path) as running:
        found = texts(running, [7] * 40)
    assert len({one.made for one in found}) == 1
    assert len(logged(log)) == 1
    assert running.meter.answered == 1


@pytest.mark.parametrize("faults", ["0", "0.5"])
def test_a_budget_is_never_exceeded(tmp_path: Path, faults: str) -> None:
    log = tmp_path / "log.jsonl"
    budget = 0.02
    with server(log, "--faults", faults, "--latency", "0.01") as url:
        with teacher(url, tmp_path, Meter(budget), seconds=0.5) as running:
            got = []

            async def one(number: int) -> Reply:
                return await running.ask(ask(number, max_tokens=100))

            with pytest.raises(OverBudget):
                got.extend(running.each(one, range(100_000)))
        assert 0.5 * budget < running.meter.spent <= budget
        assert running.meter.reserved == pytest.approx(0)
        kept = Store(tmp_path / "t.sqlite3")
        for line in got:
            if line.made is not None:
                assert kept.get(ask(line.item, max_tokens=100).key(running.endpoint.name, "fake"))
        kept.close()


def test_a_server_that_refuses_everything_ends_it(tmp_path: Path) -> None:
    class Refusing:
        name, model, concurrency, price = "fake", "fake", 4, Price()

        async def answer(self, ask: Ask) -> Reply:
            raise InputError("the teacher refuses every request", "401", "check the key", "x")

        async def close(self) -> None:
            pass

    refusing = Teacher(Refusing(), Store(tmp_path / "t"), Meter())
    with refusing as running, pytest.raises(InputError, match="refuses"):
        texts(running, range(100))


def test_many_at_once_where_the_server_stands_it_and_fewer_where_not() -> None:
    async def pressed(most: int, stands: int) -> tuple[int, int, int]:
        gate, active, peak, refused = Gate(most), 0, 0, 0

        async def one() -> None:
            nonlocal active, peak, refused
            while True:
                async with gate.pass_through():
                    began = asyncio.get_running_loop().time()
                    active += 1
                    peak = max(peak, active)
                    busy = active > stands
                    await asyncio.sleep(0.002)
                    active -= 1
                    if not busy:
                        gate.answered()
                        return
                    refused += 1
                    gate.too_busy(began, 0.001)

        await asyncio.gather(*(one() for _ in range(1500)))
        assert gate.active == 0
        return peak, refused, int(gate.limit)

    peak, refused, limit = asyncio.run(pressed(64, 1000))
    assert (peak, refused, limit) == (64, 0, 64)
    peak, refused, limit = asyncio.run(pressed(64, 10))
    assert refused < 500
    assert limit <= 16


@given(st.text(max_size=40))
def test_any_retry_after_is_read(header: str) -> None:
    found = retry_after(header)
    assert found is None or found >= 0


def test_retry_after_as_the_standard_has_it() -> None:
    assert retry_after("1.5") == 1.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("inf") is None
    assert retry_after("") is None


def test_a_field_that_a_server_refuses_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    choosy = server(log, "--answers", "teacher_server:choosy")
    with choosy as url, teacher(url, tmp_path) as running:
        found = texts(running, range(20), schema={"type": "object"})
    assert all(one.made for one in found)
    assert running.endpoint.refused == {"temperature", "response_format", "max_tokens"}  # type: ignore[attr-defined]


def test_servers_and_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETONE_TEACHER_KEY", KEY)
    assert find_server("http://127.0.0.1:1/v1") == ("http://127.0.0.1:1/v1", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="key is missing"):
        find_server("openai")
    with pytest.raises(InputError, match='did you mean "ollama"'):
        find_server("olama")
    assert find_server("ollama") == ("http://localhost:11434/v1", "")
    endpoint = OpenAIEndpoint("http://me:pass@127.0.0.1:1/v1?x=1", "m")
    assert endpoint.name == "127.0.0.1:1/v1"


def test_a_model_on_this_machine_is_a_teacher(tmp_path: Path) -> None:
    model = tiny.model(initializer_range=0.3)
    engine = Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))
    asks = [ask(number, max_tokens=8, temperature=0.0) for number in range(40)]
    asks.append(Ask((Message("user", "long " * 2000),)))
    local = LocalEndpoint(Service(engine), "tiny")
    with Teacher(local, Store(tmp_path / "t.sqlite3"), Meter()) as running:

        async def one(place: int) -> Reply:
            return await running.ask(asks[place])

        found = list(running.each(one, range(len(asks))))
    assert "have room for" in found.pop().fault
    expected = engine.tuned([list(a.messages) for a in asks[:-1]], Sampling(max_new_tokens=8))
    assert [one.made.text for one in found if one.made] == [one.text for one in expected]
    assert all(one.made and one.made.completion_tokens <= 8 for one in found)
    assert not local._service.alive


@pytest.mark.parametrize("given", ["1", "a,b", "-1,2", "inf,1", "nan,1"])
def test_a_price_that_is_none_is_told(given: str) -> None:
    with pytest.raises(InputError, match="two numbers"):
        find_price("https://example.invalid/v1", "m", given)


def test_prices_are_given_known_or_asked_for() -> None:
    assert find_price("https://example.invalid/v1", "m", "1,2") == PRICE
    assert find_price("http://127.0.0.1:1/v1", "m", None) == Price()
    assert find_price("https://example.invalid/v1", "gpt-5-mini", None).completion == 2
    with pytest.raises(InputError, match="nobody knows"):
        find_price("https://example.invalid/v1", "gpt-5-mimi", None)
