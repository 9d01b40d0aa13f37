"""Using a run: chat, test, batch, cache, rename, blind votes, jobs and the server (tiny model)."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tiny
from foreign_adapters import lora, saved
from retone.cli import main
from retone.console import read_turn
from retone.errors import InputError
from retone.evaluation.votes import Votes, sign_test
from retone.run_dir import find_run, read_json, read_jsonl
from retone.workflows import batch as batch_module
from retone.workflows import jobs
from small_run import NOUNS, small_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, `my`."""
    folder = tmp_path_factory.mktemp("using")
    small_run(folder, "train.evaluate_every=2", "train.sample_answers=1")
    said = (folder / "said.csv").read_text().replace("said,told", "prompt,completion")
    (folder / "rows.csv").write_text(said)
    return folder


@pytest.fixture
def work(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str) -> Any:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    capsys.readouterr()
    assert main(["chat", "my"]) == 0
    return capsys.readouterr()


def test_what_was_said_is_saved_as_data(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "Hi.\n/system Be brief.\nWho\\\nare you?\n/save talk.jsonl\n/save talk.jsonl\n/exit\n"
    told = talk(monkeypatch, capsys, said)
    assert "talk.jsonl is there already" in told.err
    (row,) = read_jsonl(work / "talk.jsonl")
    turns = row["messages"]
    assert turns[0] == {"role": "system", "content": "Be brief."}
    assert [turn["role"] for turn in turns[1:]] == ["user", "assistant"] * 2
    assert turns[3]["content"] == "Who\nare you?"
    assert main(["inspect", "talk.jsonl", "--model", str(work / "base")]) in (0, 1)
    assert "messages" in capsys.readouterr().out


def test_both_sides_retry_and_temperature(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "/retry\n/both\nHi.\n/temp 9\n/temp 1.2\n/retry\n/reset\n/what\n/help\n/exit\n"
    told = talk(monkeypatch, capsys, said)
    assert told.out.count("tuned") == told.out.count("base") == 2
    for text in ("nothing was asked yet", "not '9'", "temperature 1.2", "forgotten",
                 "there is no /what", "/both"):  # fmt: skip
        assert text in told.err


def test_an_answer_is_kept_until_there_is_another(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retone.workflows.chat import Talk
    from retone.workflows.load import load

    conversation = Talk(load("my", offline=True))
    conversation.say("Hi.")
    before = list(conversation.history)
    assert len(before) == 2
    stream = conversation.model.engine.stream
    monkeypatch.setattr(conversation.model.engine, "stream", lambda *_, **__: (_ for _ in ()))
    conversation.retry("")
    assert conversation.history == before
    monkeypatch.setattr(conversation.model.engine, "stream", stream)
    conversation.retry("")
    assert conversation.history == before  # greedy says the same again
    conversation.say("x " * 3000)
    assert conversation.history == before


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("one\n", "one"),
        ("", None),
        ("one\\\ntwo\\\nthree\nfour\n", "one\ntwo\nthree"),
        ('"""\none\n\ntwo\n"""\nthree\n', "one\n\ntwo"),
        ('"""one\ntwo"""\n', "one\ntwo"),
        ('"""one\ntwo', "one\ntwo"),
    ],
)
def test_several_lines_are_one_text(
    typed: str, read: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert read_turn() == read


def test_answers_on_the_way_are_kept(work: Path) -> None:
    found = read_jsonl(find_run("my").samples)
    assert [line["step"] for line in found] == [2, 4]
    assert {line["question"] for line in found} == {"Hello there."}


def test_answers_of_steps_that_come_again_are_made_anew(work: Path, tmp_path: Path) -> None:
    """As after a kill: the run goes on from a checkpoint before its last sample answers."""
    from retone.workflows.load import open_run
    from retone.workflows.train import _asker

    shutil.copytree(work / "runs" / "my", tmp_path / "my")
    run = find_run(str(tmp_path / "my"))
    stale = [{"step": step, "question": "Hello there.", "answer": "stale"} for step in (2, 4, 6)]
    run.samples.write_text("".join(json.dumps(line) + "\n" for line in stale))
    opened = open_run(run, offline=True)
    _asker(run, opened, opened.load_base_model())(4)
    found = read_jsonl(run.samples)
    assert [line["step"] for line in found] == [2, 4]
    assert [line["answer"] == "stale" for line in found] == [True, False]


def test_batch_goes_on_where_it_was_stopped(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [f"Where is the {noun}?" for noun in NOUNS]
    (work / "ask.txt").write_text("\n\n".join(prompts) + "\n")
    assert main(["batch", "my", "ask.txt", "-o", "whole.jsonl"]) == 0
    whole = read_jsonl(work / "whole.jsonl")
    assert [row["prompt"] for row in whole] == prompts
    assert [row["row"] for row in whole] == list(range(1, len(prompts) + 1))

    monkeypatch.setattr(batch_module, "CHUNK", 1)
    monkeypatch.setattr("retone.inference.engine.Engine.tuned", stopping_after(2))
    loaded = batch_module.load

    def small(*given: Any, **named: Any) -> Any:
        tuned = loaded(*given, **named)
        tuned.engine.batch_size = 4
        return tuned

    monkeypatch.setattr(batch_module, "load", small)
    assert main(["batch", "my", "ask.txt", "-o", "parts.jsonl"]) == 130
    assert not (work / "parts.jsonl").exists()
    partial = work / "parts.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 9
    with partial.open("a") as file:
        file.write('{"row": 9, "pro')  # a line that a kill cut short
    monkeypatch.undo()
    monkeypatch.chdir(work)
    capsys.readouterr()
    assert main(["batch", "my", "ask.txt", "-o", "parts.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 8
    assert read_jsonl(work / "parts.jsonl") == whole
    assert not partial.exists()
    assert main(["batch", "my", "ask.txt", "-o", "parts.jsonl"]) == 2
    assert "there already" in capsys.readouterr().err


def stopping_after(batches: int) -> Any:
    from retone.inference.engine import Engine

    real, count = Engine.tuned, [0]

    def tuned(self: Any, prompts: Any, sampling: Any) -> Any:
        count[0] += 1
        if count[0] > batches:
            raise KeyboardInterrupt
        return real(self, prompts, sampling)

    return tuned


def test_batch_reads_rows_of_any_shape(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "odd.csv").write_text("id,utterance\n1,Hello there.\n2,Who are you?\n")
    assert main(["batch", "my", "odd.csv", "-o", "odd.jsonl", "--column", "utterance"]) == 0
    assert [row["prompt"] for row in read_jsonl(work / "odd.jsonl")] == [
        "Hello there.", "Who are you?",
    ]  # fmt: skip
    assert main(["batch", "my", "rows.csv", "-o", "base.jsonl", "--base"]) == 0
    assert len(read_jsonl(work / "base.jsonl")) == len(NOUNS)
    (work / "own.csv").write_text("note,said\nx,Hello there.\n")  # the column of the recipe
    assert main(["batch", "my", "own.csv", "-o", "own.jsonl", "--max-new-tokens", "2"]) == 0
    (row,) = read_jsonl(work / "own.jsonl")
    assert row["prompt"] == "Hello there."
    assert row["tokens"] <= 2 < read_jsonl(work / "odd.jsonl")[0]["tokens"]
    (work / "latin.txt").write_bytes("Où es-tu ?\n".encode("latin1"))
    assert main(["batch", "my", "latin.txt", "-o", "none.jsonl"]) == 2
    assert "line 1: byte 0xf9" in capsys.readouterr().err
    (work / "long.txt").write_text("Hi.\n" + "x " * 3000 + "\n")
    assert main(["batch", "my", "long.txt", "-o", "none.jsonl"]) == 2
    assert "row 2: the prompt has" in capsys.readouterr().err
    (work / "nothing.txt").write_text("\n\n")
    assert main(["batch", "my", "nothing.txt", "-o", "none.jsonl"]) == 2
    assert "nothing to answer" in capsys.readouterr().err
    assert not (work / "none.jsonl").exists()


def test_sample_questions(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "my", "-o", "found.json"]) == 0
    kept = read_json(work / "found.json")
    assert [one["question"] for one in kept["answers"]] == ["Hello there."]
    assert kept["answers"][0]["tuned"]["text"] in capsys.readouterr().out


def test_runs_are_renamed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--rename", "my", "ours"]) == 0
    assert find_run("ours").status == "finished"
    assert main(["runs", "--rename", "ours", "my"]) == 0
    assert main(["runs", "--rename", "nobody", "x"]) == 2
    assert main(["runs", "--rename", "my", "../x"]) == 2
    (work / "runs" / "taken").mkdir()
    assert main(["runs", "--rename", "my", "taken"]) == 2
    assert find_run("my").status == "finished"


def test_the_cache_is_listed_and_deleted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["cache", "--json"]) == 0
    kept = {one["name"]: one for one in json.loads(capsys.readouterr().out)["kept"]}
    assert kept["answers"]["bytes"] > 0
    assert main(["cache", "--delete", "nobody"]) == 2
    assert (work / "runs" / ".answers").is_dir()
    assert main(["cache", "--delete", "answers"]) == 0
    assert not (work / "runs" / ".answers").exists()


def test_votes_are_kept_and_tested(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "votes.sqlite3")
    assert votes.tally() is None
    for side, choice in ((0, "a"), (1, "b"), (0, "b"), (1, "equal"), (1, "b")):
        votes.add("Who?", ("this", "that"), side, choice)
    tally = votes.tally()
    assert tally is not None
    assert (tally.tuned, tally.base, tally.equal) == (3, 1, 1)
    assert tally.p == pytest.approx(0.625)  # 2 * (4 + 1) / 2^4
    assert "may be luck" in str(tally)
    assert sign_test(10, 0, 3).p == pytest.approx(2 / 1024)
    assert "luck" not in str(sign_test(10, 0, 3))


def test_a_vote_stands_in_the_report(work: Path) -> None:
    from retone.workflows.serve import FrontDesk

    run = find_run("my")
    assert "Blind votes" not in run.report.read_text()
    told = FrontDesk(offline=True).vote("my", "Who <b>?", ("x", "y"), 1, "b")
    assert told.startswith("1 vote: 1 tuned, 0 base, 0 equal")
    assert f"sides drawn by lot: {told}" in run.report.read_text()


def until_done(job: Any, seconds: float = 120) -> Any:
    for _ in range(int(seconds / 0.25)):
        state = jobs.state()
        if state.status != "running":
            return state
        time.sleep(0.25)
    raise AssertionError(job)


def test_a_job_trains_in_a_process_of_its_own(work: Path) -> None:
    columns = ("", "")
    name = jobs.start("rows.csv", str(work / "base"), "lora", *columns, "my", 2).name
    assert name == "my-2"  # that of a run is never taken
    with pytest.raises(InputError, match="running already"):
        jobs.start("rows.csv", str(work / "base"), "lora", *columns, "other", 2)
    state = until_done(name)
    assert state.status == "finished", state.told
    assert {kind for _, kind, _ in state.curve} == {"training", "validation"}
    assert state.samples
    recipe = read_json(find_run(name).resolved)["recipe"]
    assert recipe["train"]["epochs"] == 2
    assert recipe["model"]["name"] == str(work / "base")


def test_a_job_that_fails_says_why(work: Path) -> None:
    (work / "bad.csv").write_text("number\n1\n2\n")
    jobs.start("bad.csv", str(work / "base"), "lora", "", "", "bad", None)
    state = until_done("bad")
    assert state.status == "failed"
    assert "no shape that is known" in state.told
    with pytest.raises(InputError):
        jobs.start("rows.csv", str(work / "base"), "lora", "", "", "no name", None)


def test_a_job_is_stopped_and_its_recipe_goes_on(work: Path) -> None:
    jobs.start("rows.csv", str(work / "base"), "lora", "prompt", "completion", "long", 5000)
    for _ in range(400):
        if jobs.state().curve:
            break
        time.sleep(0.1)
    state = jobs.stop()
    assert state.status == "stopped"
    assert find_run("long").status == "interrupted"
    assert "recipe.toml" in state.told


def served(work: Path, *arguments: str, **environment: str) -> tuple[Any, str]:
    """A real server on a free port; who asks stops it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "retone", "serve", "my", "--port", "0", "--offline", *arguments],
        cwd=work, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("API: "):
            return process, line.split()[1].removesuffix("/v1")
    raise AssertionError("the server did not start")


def stopped(process: Any) -> int:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    return int(process.returncode)


def test_the_server_answers_and_stops(work: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    process, address = served(work, "--api-only", RETONE_PASSWORD="secret word")
    try:
        with urllib.request.urlopen(f"{address}/health") as found:
            assert json.load(found)["model"] == "my"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/v1/models")
        body = {"model": "my", "messages": [{"role": "user", "content": "Hi."}]}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": "Bearer secret word"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as found:
            assert json.load(found)["usage"]["completion_tokens"] > 0
    finally:
        assert stopped(process) in (0, 130)


def test_a_second_adapter_is_served_loaded_and_let_go(work: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    process, address = served(work, "--api-only", "--adapter", "second=my")

    def told(path: str, body: dict[str, Any] | None = None) -> str:
        sent = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/{path}", sent, headers)
        with urllib.request.urlopen(request) as found:
            return str(found.read().decode())

    def answer(model: str) -> str:
        asked = {"model": model, "messages": [{"role": "user", "content": "The hen sleeps"}]}
        found = json.loads(told("chat/completions", asked))
        return str(found["choices"][0]["message"]["content"])

    def models() -> set[str]:
        return {one["id"] for one in json.loads(told("models"))["data"]}

    try:
        assert {"my", "second"} < models()
        assert answer("second") == answer("my")
        told(
            "load_lora_adapter", {"lora_name": "third", "lora_path": str(work / "runs/my/adapter")}
        )
        assert answer("third") == answer("my")
        told("unload_lora_adapter", {"lora_name": "second"})
        assert "second" not in models()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            answer("second")
    finally:
        assert stopped(process) in (0, 130)


@pytest.mark.parametrize("password", ["", "secret"])
def test_the_pages_open_and_a_password_closes_them(work: Path, password: str) -> None:
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    process, address = served(work, RETONE_PASSWORD=password)
    try:
        with urllib.request.urlopen(address) as found:
            page = found.read().decode()
        fetched = re.findall(r"""(?:src|<link[^>]*href)=["'](https?://[^"']+)""", page)
        assert [link for link in fetched if not link.startswith(address)] == []
        config = f"{address}/config"
        if password:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(config)
        else:
            with urllib.request.urlopen(config) as found:
                assert json.load(found)["title"] == "retone"
    finally:
        assert stopped(process) in (0, 130)


def test_a_run_is_served_wherever_it_is(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    from retone.workflows.serve import FrontDesk

    elsewhere = tmp_path / "elsewhere" / "my"
    shutil.copytree(work / "runs" / "my", elsewhere)
    monkeypatch.chdir(tmp_path)
    desk = FrontDesk(find_run(str(elsewhere)), offline=True)
    assert desk.runs() == ["my"]
    opened = desk.open("my")
    assert opened.served.tuned == "my"
    assert "<html" in opened.report()
    told = desk.vote("my", "Who?", ("x", "y"), 0, "a")
    assert told in (elsewhere / "report.html").read_text()
    desk.close()


@pytest.fixture
def beside(work: Path, tmp_path: Path) -> Path:
    """A copy of the run with other weights, system prompt and length of answers."""
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "theirs"
    shutil.copytree(work / "runs" / "my", copy)
    file = copy / "adapter" / "adapter_model.safetensors"
    save_file({name: 4 * tensor for name, tensor in load_file(file).items()}, file)
    resolved = read_json(copy / "resolved.json")
    resolved["recipe"]["data"]["system"] = "Be somebody else."
    resolved["recipe"]["evaluate"]["max_new_tokens"] = 5
    (copy / "resolved.json").write_text(json.dumps(resolved))
    return copy


def test_adapters_of_one_base_are_served_side_by_side(
    work: Path, beside: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    from fastapi.testclient import TestClient

    from retone.inference.api import Adapters, create_api
    from retone.inference.sampling import Sampling
    from retone.workflows.load import load
    from retone.workflows.serve import FrontDesk

    expected = {
        "my": load("my", offline=True).answer("Hi."),
        "theirs": load(find_run(str(beside)), offline=True).answer("Hi."),
    }
    desk = FrontDesk(offline=True)
    desk.open("my")
    api = create_api(desk.served, Adapters(desk.load_adapter, desk.unload_adapter), local=True)
    with TestClient(api, base_url="http://127.0.0.1") as client:

        def change(verb: str, **body: str) -> tuple[int, str]:
            answer = client.post(f"/v1/{verb}_lora_adapter", json=body)
            ok = answer.status_code == 200
            return answer.status_code, "" if ok else answer.json()["error"]["code"]

        def answer(name: str, *messages: dict[str, str], **fields: int) -> Any:
            body = {"model": name, "messages": [*messages, {"role": "user", "content": "Hi."}]}
            return client.post("/v1/chat/completions", json=body | fields)

        def names() -> list[str]:
            return [model["id"] for model in client.get("/v1/models").json()["data"]]

        own = names()
        assert change("load", lora_name="theirs", lora_path=str(beside)) == (200, "")
        adapter = str(saved(tmp_path / "bare", work / "base", lora()))
        assert change("load", lora_name="bare", lora_path=adapter) == (200, "")
        assert names() == [*own, "theirs", "bare"]
        said = {name: answer(name).json() for name in expected}
        for name, text in expected.items():
            assert said[name]["choices"][0]["message"]["content"] == text
        assert said["theirs"]["usage"]["completion_tokens"] <= 5
        assert len(set(expected.values())) == 2
        # Another tool's folder became a run, which has no system prompt.
        bare = answer("bare", max_tokens=5).json()
        alone = load("bare", offline=True).ask("Hi.", sampling=Sampling(max_new_tokens=5))
        assert bare["choices"][0]["message"]["content"] == alone.text
        assert bare["usage"]["prompt_tokens"] < said["theirs"]["usage"]["prompt_tokens"]
        for name in own:
            assert change("load", lora_name=name, lora_path=adapter) == (400, "name-taken")
            assert change("unload", lora_name=name) == (404, "unknown-adapter")
        for path in ("nobody", "\0", "x" * 300, f"{tmp_path}/{'y' * 300}"):
            assert change("load", lora_name="x", lora_path=path) == (404, "unknown-run")
        assert change("unload", lora_name="theirs") == (200, "")
        assert names() == [*own, "bare"]
        assert answer("theirs").status_code == 404
        assert answer("my").json()["choices"] == said["my"]["choices"]
        desk.open("my")
        assert names() == [*own, "bare"]
    desk.close()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("base", "other-base"),
        ("template", "other-template"),
        ("tokens", "other-template"),
        ("sha256", "other-base"),
        ("none of these", ""),
    ],
)
def test_a_folder_of_another_tool_is_held_against_what_is_open(
    work: Path, tmp_path: Path, what: str, code: str
) -> None:
    """Its base's name, chat template and tokens tell that it is not for the model that is open."""
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    from retone.workflows.serve import FrontDesk

    base = tiny.folder(tmp_path / "other", seed=5) if what == "base" else work / "base"
    folder = saved(tmp_path / f"for {what}", base, lora())
    if what == "template":
        (folder / "chat_template.jinja").write_text("Be a pirate." + tiny.CHATML)
    elif what == "tokens":
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
    elif what == "sha256":
        (folder / "base_model.json").write_text(json.dumps({"sha256": "0" * 64}))
    else:  # another tool's file of this name
        (folder / "base_model.json").write_text('{"model": "mine"}')
    desk = FrontDesk(offline=True)
    desk.open("my")
    own = desk.served().names
    if code:
        with pytest.raises(InputError) as refused:
            desk.load_adapter("theirs", str(folder))
        assert refused.value.code == code
        assert desk.served().names == own
    else:
        desk.load_adapter("theirs", str(folder))
        assert desk.served().names == [*own, "theirs"]
    desk.close()


def test_a_run_that_does_not_open_leaves_the_other_one_open(
    work: Path, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    from retone.workflows import serve as module

    def damaged(*_: Any) -> list[str]:
        raise InputError("a file of the run is damaged", "x", "y", "damaged-run")

    desk = module.FrontDesk(find_run(str(beside)), offline=True)
    for name, before in (("my", None), ("theirs", "my")):
        with monkeypatch.context() as patch:
            patch.setattr(module, "sample_questions", damaged)
            with pytest.raises(InputError, match="damaged"):
                desk.open(name)
        if before:
            assert desk.served().tuned == before
            assert desk.served().service.alive
        opened = desk.open(name)
        assert opened.served.tuned == name
        assert opened.served.service.alive
    desk.close()


def test_a_base_that_changed_is_told_with_what_to_type(work: Path, tmp_path: Path) -> None:
    from retone.workflows.adopt import adopt
    from retone.workflows.load import load

    adapter = saved(tmp_path / "changed base", work / "base", lora())
    adopted = adopt(adapter, offline=True).run
    for run, remedy in (
        (Path(shutil.copytree(work / "runs" / "my", tmp_path / "own")), "run RECIPE --fresh"),
        (adopted.path, f"retone adopt {adopted.adapter} --model MODEL"),
    ):
        manifest = read_json(run / "manifest.json")
        manifest["base"]["sha256"] = "0" * 64
        (run / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError) as refused:
            load(find_run(str(run)), offline=True)
        assert refused.value.code == "other-base"
        assert remedy in refused.value.remedy


@pytest.mark.parametrize(
    ("what", "code"), [("base", "other-base"), ("template", "template-changed")]
)
def test_a_run_that_is_not_as_it_was_is_refused_beside_another(
    work: Path, beside: Path, what: str, code: str
) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    from retone.workflows.serve import FrontDesk

    file = beside / ("adapter/base_model.json" if what == "base" else "template_lock.json")
    changed = {"base": {"sha256": "0" * 64}, "template": {"stop_ids": [7]}}[what]
    file.write_text(json.dumps(read_json(file) | changed))
    desk = FrontDesk(offline=True)
    desk.open("my")
    with pytest.raises(InputError) as refused:
        desk.load_adapter("theirs", str(beside))
    assert refused.value.code == code
    assert desk.served().names == ["my", desk.served().base]
    desk.close()


def test_adapters_given_at_the_start(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    from retone.workflows import serve as module

    found: list[str] = []

    def serving(desk: Any, *_: Any, **__: Any) -> None:
        found.extend(desk.served().names)
        desk.close()

    monkeypatch.setattr(module, "_serve", serving)
    module.serve("my", port=0, api_only=True, adapters=["a=my", "b=runs/my/adapter"], offline=True)
    assert found[0] == "my"
    assert found[2:] == ["a", "b"]
    for wrong in ("my", "=my", "a="):
        with pytest.raises(InputError, match="NAME=RUN_OR_FOLDER"):
            module.serve("my", adapters=[wrong])
    with pytest.raises(InputError, match="vLLM"):
        module.serve("my", engine="vllm", adapters=["a=my"])


def test_missing_packages_are_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("retone.workflows.serve.find_spec", lambda name: None)
    assert main(["serve", "my"]) == 3
    told = capsys.readouterr().err
    assert "not installed: fastapi, uvicorn, gradio" in told
    assert "pip install 'retone[app]'" in told


def test_only_what_fits_is_offered(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from retone.planning import probe_machine

    def machine(gigabytes: float) -> None:
        found = replace(probe_machine(), memory_bytes=int(gigabytes * 1e9))
        monkeypatch.setattr(jobs, "probe_machine", lambda: found)

    machine(200)
    everything = jobs.choices()
    machine(3.5)
    some = jobs.choices()
    assert len(some.bases) < len(everything.bases)
    assert {"full"} == {name for name, _ in everything.methods} - {name for name, _ in some.methods}
    with pytest.raises(InputError, match="does not fit into memory"):
        jobs.start("rows.csv", "smollm2-135m-instruct", "full", "", "", "large", None)
    assert not (work / "runs" / ".jobs" / "large").exists()
    monkeypatch.setattr(jobs, "find_spec", lambda name: None)
    assert "qlora" not in {name for name, _ in jobs.choices().methods}


def test_vllm_takes_over(work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a fake vllm on the path, which keeps what it was told."""
    told = tmp_path / "told"
    fake = tmp_path / "vllm"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "key $VLLM_API_KEY" > {told}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("RETONE_PASSWORD", "secret word")
    assert main(["serve", "my", "--engine", "vllm", "--offline", "--port", "8001"]) == 3
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert main(["serve", "my", "--engine", "vllm", "--offline", "--port", "8001"]) == 0
    words = told.read_text().splitlines()
    assert words[:2] == ["serve", str(work / "base")]
    given = dict(itertools.pairwise(words))
    assert given["--lora-modules"] == "my=runs/my/adapter"
    assert given["--max-lora-rank"] == "8"
    assert Path(given["--chat-template"]).read_text() == tiny.CHATML
    assert words[-1] == "key secret word"
    assert "secret word" not in words


def test_vllm_is_not_given_what_it_cannot_load(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = find_run("my").adapter / "adapter_config.json"
    plain = config.read_text()
    try:
        config.write_text(json.dumps(json.loads(plain) | {"use_dora": True}))
        assert main(["serve", "my", "--engine", "vllm", "--offline"]) == 2
    finally:
        config.write_text(plain)
    assert "with use_dora" in capsys.readouterr().err


def test_serving_is_refused_with_what_to_do(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi", reason="the extra `app` is not installed")
    monkeypatch.delenv("RETONE_PASSWORD", raising=False)
    assert main(["serve", "my", "--host", "0.0.0.0", "--api-only"]) == 2
    assert "RETONE_PASSWORD" in capsys.readouterr().err
    assert main(["serve", "nobody", "--port", "0", "--api-only"]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "my", "--port", port, "--api-only"]) == 3
    assert "--port 0" in capsys.readouterr().err
