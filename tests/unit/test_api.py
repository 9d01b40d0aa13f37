"""The OpenAI-compatible API over a tiny model: shapes, refusals, limits, and nobody gets a 5xx."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `app` is not installed")

from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from retone.chat_template import ChatTemplate
from retone.conversation import Message
from retone.errors import InputError, MachineError
from retone.inference.api import Adapters, Served, Voice, create_api
from retone.inference.decoding import Row
from retone.inference.desk import answers
from retone.inference.engine import Engine
from retone.inference.sampling import Sampling
from retone.inference.service import Busy, Event, Service, Ticket
from retone.rendering import RowRejected

MESSAGES = [{"role": "user", "content": "Who plays the old piano?"}]


def engine() -> Engine:
    model = tiny.model(initializer_range=0.3)
    return Engine(model, tiny.tokenizer(), ChatTemplate(tiny.tokenizer(), name="tiny"))


def none_beside(*given: str) -> None:
    raise AssertionError(given)


ALONE = Adapters(none_beside, none_beside)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service(engine())
    yield made
    made.close()
    assert not made.alive


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    served = Served(service, "mine", "tiny", Sampling(max_new_tokens=12), "Answer as Yoda would.")
    api = create_api(lambda: served, ALONE, local=True)
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as found:
        yield found


def chat(client: TestClient, **fields: Any) -> Any:
    return client.post(
        "/v1/chat/completions", json={"model": "mine", "messages": MESSAGES} | fields
    )


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_is_the_engine_s(client: TestClient, service: Service) -> None:
    found = chat(client).json()
    prompt = [Message("system", "Answer as Yoda would."), Message("user", MESSAGES[0]["content"])]
    (expected,) = engine().tuned([prompt], Sampling(max_new_tokens=12))
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == ("stop" if expected.stopped else "length")
    usage = found["usage"]
    assert usage["completion_tokens"] == expected.tokens
    assert usage["prompt_tokens"] == len(service.engine.template.prompt_ids(prompt))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_says_the_same(client: TestClient) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2, n=2, temperature=0.9).json()
    found = events(
        chat(
            client, stream=True, stream_options={"include_usage": True},
            logprobs=True, top_logprobs=2, n=2, temperature=0.9,
        ).text
    )  # fmt: skip
    for at, choice in enumerate(whole["choices"]):
        pieces = [c for one in found for c in one["choices"] if c["index"] == at]
        assert (
            "".join(piece["delta"]["content"] for piece in pieces) == choice["message"]["content"]
        )
        assert pieces[0]["delta"]["role"] == "assistant"
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        chances = [t for piece in pieces[1:] for t in piece["logprobs"]["content"]]
        assert [t["token"] for t in chances] == [t["token"] for t in choice["logprobs"]["content"]]
    assert found[-1]["usage"] == whole["usage"]
    assert whole["choices"][0]["message"] != whole["choices"][1]["message"]


def test_seeds_stops_and_lengths(client: TestClient) -> None:
    drawn = {"temperature": 1.5, "max_tokens": 9}
    one, same, other = (
        chat(client, seed=seed, **drawn).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    )
    assert one == same != other
    free = chat(client).json()["choices"][0]["message"]["content"]
    cut = chat(client, stop=[free[2:4]]).json()["choices"][0]
    assert cut["message"]["content"] == free[:2]
    assert cut["finish_reason"] == "stop"
    assert chat(client, max_tokens=2).json()["usage"]["completion_tokens"] == 2
    assert chat(client, max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3


def test_plain_completions(client: TestClient) -> None:
    body = {"model": "tiny", "prompt": ["The cat", "Rain taps"], "max_tokens": 6, "logprobs": 2}
    found = client.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["object"] == "text_completion"
    for choice in found["choices"]:
        assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"]) <= 6
    pieces = events(client.post("/v1/completions", json={**body, "stream": True}).text)
    for at in range(2):
        text = "".join(c["text"] for one in pieces for c in one["choices"] if c["index"] == at)
        assert text == found["choices"][at]["text"]


def test_models_health_and_metrics(client: TestClient) -> None:
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["mine", "tiny"]
    assert client.get("/health").json() == {"status": "ok", "model": "mine"}
    before = client.get("/metrics").text
    chat(client)
    until_true(lambda: "retone_running 0" in client.get("/metrics").text)
    after = client.get("/metrics").text

    def tokens(text: str) -> float:
        return float(next(x for x in text.splitlines() if x.startswith("retone_tokens")).split()[1])

    assert tokens(after) > tokens(before)
    assert "# TYPE retone_running gauge\nretone_running 0\n" in after


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 99}, 400, "n"),
        ({"seed": 2**70}, 400, "seed"),
        ({"stop": [""]}, 400, None),
        ({"tools": [{"type": "function"}]}, 400, None),
        ({"logit_bias": {"1": 5}}, 400, None),
        ({"response_format": {"type": "json_object"}}, 400, "response_format.type"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty"),
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, 400, "messages"),
        ({"repetition_penalty": 1e-300}, 400, "repetition_penalty"),
    ],
)
def test_what_is_wrong_is_said(
    client: TestClient, fields: dict[str, Any], status: int, param: str | None
) -> None:
    found = chat(client, **fields)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    if param:
        assert error["param"].startswith(param)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "mine", "messages": NaN}',
        b'{"model": "mine", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "mine", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"\\ud800": 1}', b'{"model": "\\ud800", "messages": [{"role":"user","content":"x"}]}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"model": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_malformed_bodies_are_the_client_s_fault(client: TestClient, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        found = client.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= found.status_code < 500, (path, body[:60], found.text)
        assert found.json()["error"]["message"]


def test_a_plain_prompt_leaves_room_for_an_answer(client: TestClient) -> None:
    body = {"model": "mine", "prompt": ["x", "x " * 2000]}
    found = client.post("/v1/completions", json=body)
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "context_length_exceeded"
    assert found.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-300, 5e-324])
@pytest.mark.parametrize("penalty", [0.01, 1, 10])
def test_extreme_numbers_are_answered(
    client: TestClient, temperature: float, penalty: float
) -> None:
    fields = {"temperature": temperature, "repetition_penalty": penalty, "max_tokens": 4}
    found = chat(client, **fields, top_p=1e-300, top_k=1_000_000)
    assert found.status_code == 200, found.text
    greedy = chat(client, **fields | {"temperature": 0}).json()
    assert found.json()["choices"] == greedy["choices"]


def test_without_an_open_run_nothing_is_answered() -> None:
    from retone.workflows.serve import FrontDesk

    with TestClient(create_api(FrontDesk().served, ALONE, local=False)) as found:
        for path in ("/health", "/v1/models", "/metrics"):
            answer = found.get(path)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "no_model"


def test_conversations_that_differ_are_answered_in_one_batch(service: Service) -> None:
    served = Served(service, "mine", "tiny", Sampling())
    asked = [[Message("user", text)] for text in ("Who plays?", "Rain taps on the old roof.")]
    *_, found = answers(served, [(asked[0], True), (asked[1], True)], Sampling(max_new_tokens=9))
    assert found == [one.text for one in engine().tuned(asked, Sampling(max_new_tokens=9))]
    with pytest.raises(RowRejected, match="have room for"):
        next(
            answers(served, [(asked[0], True), ([Message("user", "x " * 2000)], True)], Sampling())
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ("model", "messages", "temperature", "top_p", "top_k", "max_tokens", "stop", "n", "seed",
          "stream", "stream_options", "logprobs", "top_logprobs", "prompt", "tools")  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_odd_fields_never_break_the_server(client: TestClient, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "mine", "messages": MESSAGES, "max_tokens": 1} | fields)
    for path in ("/v1/chat/completions", "/v1/completions"):
        found = client.post(path, content=body, headers={"content-type": "application/json"})
        assert found.status_code < 500, found.text


def test_a_large_body_is_refused_before_it_is_read(client: TestClient) -> None:
    found = client.post("/v1/completions", content=b" " * 10_000_001)
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "too_large"


def test_other_hosts_and_tokens_are_refused(service: Service) -> None:
    served = Served(service, "mine", "tiny", Sampling(max_new_tokens=2))
    api = create_api(lambda: served, ALONE, local=True, token="secret")
    with TestClient(api, base_url="http://127.0.0.1") as found:
        assert found.get("/v1/models", headers={"host": "evil.example"}).status_code == 400
        for path in ("load", "unload"):
            body = {"lora_name": "x", "lora_path": "/"}
            assert found.post(f"/v1/{path}_lora_adapter", json=body).status_code == 401
        missing = found.get("/v1/models")
        assert missing.status_code == 401
        assert missing.json()["error"]["code"] == "invalid_api_key"
        wrong = found.get("/v1/models", headers={"authorization": "Bearer secreT"})
        assert wrong.status_code == 401
        assert "access-control-allow-origin" not in wrong.headers
        right = found.get("/v1/models", headers={"authorization": "Bearer secret"})
        assert right.status_code == 200


def test_a_model_is_asked_in_its_own_way(service: Service) -> None:
    """Its system prompt and its longest answer, not the run's."""
    prompted = Voice("default", Sampling(max_new_tokens=3), "Be brief.")
    gone = Voice("nobody", Sampling(), "")
    loaded = {"brief": prompted, "gone": gone}
    served = Served(service, "mine", "tiny", Sampling(), "Answer as Yoda would.", loaded)
    api = create_api(lambda: served, ALONE, local=True)
    with TestClient(api, base_url="http://127.0.0.1") as found:
        listed = [model["id"] for model in found.get("/v1/models").json()["data"]]
        assert listed == ["mine", "tiny", "brief", "gone"]
        usage = chat(found, model="brief").json()["usage"]
        prompt = [Message("system", "Be brief."), Message("user", MESSAGES[0]["content"])]
        assert usage["prompt_tokens"] == len(service.engine.template.prompt_ids(prompt))
        assert usage["completion_tokens"] == 3
        for path in ("chat/completions", "completions"):
            body = {"model": "gone", "messages": MESSAGES, "prompt": "x"}
            answer = found.post(f"/v1/{path}", json=body)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "model_not_found"


def test_adapters_are_loaded_and_unloaded_as_vllm_does(service: Service) -> None:
    told: list[tuple[str, ...]] = []

    def load(*given: str) -> None:
        told.append(given)
        if given[0] == "large":
            raise MachineError("the memory is full", "of it", "make room", "no-room")
        if given[0] == "odd":
            raise InputError("it does not fit", "odd", "give another", "wrong-adapter")

    def unload(*given: str) -> None:
        told.append(given)
        code = {"nobody": "unknown-adapter", "busy": "adapter-in-use"}.get(given[0])
        if code:
            raise InputError("no", given[0], "wait", code)

    served = Served(service, "mine", "tiny", Sampling())
    api = create_api(lambda: served, Adapters(load, unload), local=True)
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as found:

        def post(verb: str, *given: str, **extra: Any) -> Any:
            body = dict(zip(("lora_name", "lora_path"), given, strict=False))
            return found.post(f"/v1/{verb}_lora_adapter", json=body, **extra)

        done = post("load", "own", "runs/own")
        assert (done.status_code, done.text) == (
            200, "Success: LoRA adapter 'own' added successfully.",
        )  # fmt: skip
        done = post("unload", "own")
        assert (done.status_code, done.text) == (
            200, "Success: LoRA adapter 'own' removed successfully.",
        )  # fmt: skip
        assert told == [("own", "runs/own"), ("own",)]
        for status, code, answer in (
            (400, "wrong-adapter", post("load", "odd", "x")),
            (503, "no-room", post("load", "large", "x")),
            (404, "unknown-adapter", post("unload", "nobody")),
            (409, "adapter-in-use", post("unload", "busy")),
            (400, "invalid_request", post("load", "own")),
            (400, "invalid_request", post("load", "", "x")),
            (400, "invalid_request", post("unload")),
        ):
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["code"] == code
        # A page of another site can send such a body unasked, but not as JSON.
        told.clear()
        body = json.dumps({"lora_name": "own", "lora_path": "x"})
        sent = found.post(
            "/v1/load_lora_adapter", content=body, headers={"content-type": "text/plain"}
        )
        assert sent.status_code == 400
        assert not told


class Held:
    """A fake engine whose model waits for a signal before each step."""

    def __init__(self) -> None:
        self.real = engine()
        self.go = threading.Event()
        self.batch_size = 2
        self.context, self.cache_bytes_per_token = 512, 1
        self.template, self.tokenizer = self.real.template, self.real.tokenizer
        self.fault = ""
        self.cleared = False

    def decoder(self) -> Any:
        held, decoder = self, self.real.decoder()

        class Waiting:
            rows = property(lambda _: decoder.rows)
            open = property(lambda _: decoder.open)

            def join(self, rows: Any) -> None:
                held.go.wait(20)
                decoder.join(rows)
                if held.fault:
                    raise RuntimeError(held.fault)

            def clear(self) -> None:
                decoder.clear()
                held.cleared = not decoder.rows

            def step(self) -> None:
                decoder.step()

        return Waiting()


def ticket(held: Held, told: list[Event], tokens: int = 4) -> Ticket:
    row = Row((5, 6, 7), Sampling(max_new_tokens=tokens))
    return Ticket(row, held.template.parse, told.append)


def finished(told: list[Event]) -> bool:
    return bool(told) and told[-1].finished


def until_true(test: Any) -> None:
    for _ in range(400):
        if test():
            return
        time.sleep(0.025)
    raise AssertionError("it did not happen")


def test_a_full_queue_says_so_and_nothing_waiting_is_lost() -> None:
    held = Held()
    service = Service(held, waiting=3)  # type: ignore[arg-type]
    told: list[list[Event]] = [[] for _ in range(5)]
    service.submit([ticket(held, told[0])])
    until_true(lambda: service.counts.running == 1)
    for one in told[1:4]:
        service.submit([ticket(held, one)])
    with pytest.raises(Busy):
        service.submit([ticket(held, told[4])])
    assert service.counts.refused == 1
    held.go.set()
    until_true(lambda: all(finished(one) for one in told[:4]))
    assert not told[4]
    service.close()


def test_a_fault_is_told_and_the_next_request_is_answered() -> None:
    held = Held()
    held.fault = "out of memory"
    held.go.set()
    service = Service(held)  # type: ignore[arg-type]
    told: list[Event] = []
    service.submit([ticket(held, told)])
    until_true(lambda: finished(told))
    assert told[-1].fault == "RuntimeError: out of memory"
    until_true(lambda: held.cleared)
    held.fault = ""
    again: list[Event] = []
    service.submit([ticket(held, again)])
    until_true(lambda: finished(again))
    assert not again[-1].fault
    assert service.alive
    service.close()


def test_who_is_cancelled_costs_nothing_more_and_who_waits_at_the_end_is_told() -> None:
    held = Held()
    service = Service(held)  # type: ignore[arg-type]
    first, second, third = ([], [], [])  # type: tuple[list[Event], list[Event], list[Event]]
    going = ticket(held, first, tokens=400)
    service.submit([going])
    until_true(lambda: service.counts.running == 1)
    waiting = ticket(held, second)
    service.submit([waiting])
    service.cancel([waiting])
    held.go.set()
    until_true(lambda: first)
    service.cancel([going])
    until_true(lambda: service.counts.running == 0)
    assert service.counts.cancelled == 2
    assert len(going.row.ids) < 400
    assert not second
    held.go.clear()
    service.submit([ticket(held, third, tokens=400)])
    closing = threading.Thread(target=service.close)
    closing.start()
    held.go.set()
    closing.join(20)
    assert third[-1].finished
    with pytest.raises(Busy):
        service.submit([ticket(held, [])])


def test_rows_wait_for_room_for_their_keys_and_values() -> None:
    held = Held()
    held.batch_size = 8
    service = Service(held, cache_bytes=20)  # type: ignore[arg-type]
    told: list[list[Event]] = [[] for _ in range(4)]
    for one in told:
        service.submit([ticket(held, one, tokens=6)])  # 9 tokens each: two rows fit
    until_true(lambda: service.counts.running > 0)
    assert service.counts.running <= 2
    held.go.set()
    until_true(lambda: all(finished(one) for one in told))
    service.close()
