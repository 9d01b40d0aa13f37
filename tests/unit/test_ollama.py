"""Modelfiles: their templates against the chat templates they copy. Go itself runs in proof/."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from chat_models import MODELS, TRAINABLE, chat, template_of, tokenizer_of
from retone.conversation import Message
from retone.errors import InputError, MachineError
from retone.run_dir import Run
from retone.workflows import ollama
from retone.workflows.load import Opened, open_run
from retone.workflows.ollama import (
    CHECKED,
    create,
    find_pieces,
    require_modelfile,
    write_modelfile,
)
from small_run import small_run

ALL = ("tiny", *TRAINABLE)


def evaluate(template: str, system: str, messages: Sequence[Message]) -> str:
    """The few constructs of Go's text/template that `Pieces.go_template` uses, and no others.

    Actions are read one by one, as Go reads them; anything else in a template raises.
    """
    parts = re.split(r"(\{\{.*?\}\}(?=\{\{|\n|$|\"\"\"))", template, flags=re.MULTILINE)
    actions = [part for part in parts if part.strip()]
    text, later = "", False

    def run(actions: list[str], message: Message | None) -> None:
        nonlocal text, later
        at, live = 0, [True]
        while at < len(actions):
            body = actions[at].removeprefix("{{").removeprefix("-").removesuffix("}}").strip()
            at += 1
            if body == "range .Messages":
                depth, end = 1, at
                while depth:
                    word = actions[end].strip("{}- ").split(" ")[0]
                    depth += {"if": 1, "range": 1, "end": -1}.get(word, 0)
                    end += 1
                for one in messages:
                    run(actions[at : end - 1], one)
                at = end
            elif body.startswith(("if ", "else if ")):
                if body.startswith("else"):
                    before = live.pop()
                    taken = not before and holds(body.removeprefix("else if "), message)
                    live.append(taken)
                else:
                    live.append(holds(body.removeprefix("if "), message))
            elif body == "else":
                live.append(not live.pop())
            elif body == "end":
                live.pop()
            elif not all(live):
                continue
            elif body.startswith('"'):
                text += json.loads(body)
            elif body == ".System":
                text += system
            elif body == ".Content":
                assert message is not None
                text += message.content
            elif body in ("$later := false", "$later = true"):
                later = body.endswith("true")
            else:
                raise AssertionError(f"no such action: {body}")

    def holds(condition: str, message: Message | None) -> bool:
        if condition == ".System":
            return bool(system)
        if condition == "$later":
            return later
        role = re.fullmatch(r'eq \.Role "(\w+)"', condition)
        assert role is not None, condition
        assert message is not None
        return message.role == role[1]

    run(actions, None)
    return text


@pytest.mark.parametrize("name", ALL)
def test_the_template_gives_the_prompt(name: str) -> None:
    template = template_of(name) if name != "tiny" else tiny_template()
    pieces = find_pieces(template)
    for system, turns in CHECKED:
        messages = ollama.conversation(system, turns)
        found = evaluate(pieces.go_template(), system, messages)
        assert found == template.render(messages, add_generation_prompt=True)


def tiny_template() -> Any:
    from retone.chat_template import ChatTemplate

    return ChatTemplate(tokenizer_of("tiny"), name="tiny")


def test_the_evaluator_can_fail() -> None:
    with pytest.raises(AssertionError, match="no such action"):
        evaluate("{{ .Prompt }}", "", [])
    wrong = find_pieces(tiny_template()).go_template().replace("im_end", "im_stop", 1)
    messages = chat("Hello!", system="S")
    assert evaluate(wrong, "S", messages) != find_pieces(tiny_template()).render(messages)


def test_a_template_that_differs_in_one_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checked conversation matters: a change in a later turn alone is seen."""
    template = tiny_template()
    render = template.render

    def odd(messages: Sequence[Message], **named: Any) -> str:
        text: str = render(messages, **named)
        return text.replace("user", "USER") if len(messages) > 5 else text

    monkeypatch.setattr(template, "render", odd)
    with pytest.raises(InputError, match="7 turns") as refused:
        find_pieces(template)
    assert "llama-server --jinja" in refused.value.remedy


def test_a_template_that_changes_a_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    template = tiny_template()
    render = template.render
    monkeypatch.setattr(template, "render", lambda *a, **named: render(*a, **named).lower())
    with pytest.raises(InputError, match="cannot be written as an Ollama template"):
        find_pieces(template)


# --- the file ---


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    run = small_run(tmp_path_factory.mktemp("ollama"))
    return open_run(Run(run.path), offline=True)


def gguf_file(path: Path, adds_bos: bool | None) -> Path:
    """A GGUF file of nothing but its header."""
    writer = gguf.GGUFWriter(path, "llama")
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields(modelfile: str) -> dict[str, Any]:
    """Instructions of a Modelfile; values in three quotation marks may have lines."""
    found: dict[str, Any] = {"PARAMETER": []}
    for word, long, short in re.findall(
        r'^([A-Z]+) (?:"""(.*?)"""|([^\n]*))$', modelfile, re.DOTALL | re.MULTILINE
    ):
        value = long or short
        if word == "PARAMETER":
            found[word].append(value)
        else:
            found[word] = value
    return found


def test_a_modelfile(opened: Opened, tmp_path: Path) -> None:
    file = write_modelfile(gguf_file(tmp_path / "my.gguf", False), opened)
    assert file == tmp_path / "Modelfile"
    found = fields(file.read_text())
    assert found["FROM"] == "./my.gguf"
    assert found["SYSTEM"] == "Be Yoda."
    assert 'stop "<|im_end|>"' in found["PARAMETER"]
    assert {"temperature 0", "repeat_penalty 1", "num_predict 6", "num_ctx 512"} <= set(
        found["PARAMETER"]
    )
    messages = chat("Hello!", system="Be Yoda.")
    text = evaluate(found["TEMPLATE"], "Be Yoda.", messages)
    ids = tuple(opened.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert ids == opened.template.prompt_ids(messages)


@pytest.mark.parametrize("adds", [True, None])
def test_a_first_token_that_was_not_trained_with(
    adds: bool | None, opened: Opened, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not trained with") as refused:
        write_modelfile(gguf_file(tmp_path / "my.gguf", adds), opened)
    assert "--llama-cpp" in refused.value.remedy
    assert not (tmp_path / "Modelfile").exists()


@pytest.mark.parametrize("adds", [True, False])
def test_the_first_token_comes_once(adds: bool, opened: Opened, tmp_path: Path) -> None:
    """Llama 3 begins every text with a token that Ollama adds itself, where the file says so."""
    name = "llama-3"
    llama = replace(opened, tokenizer=tokenizer_of(name), template=template_of(name))
    file = write_modelfile(gguf_file(tmp_path / "my.gguf", adds), llama)
    for system in ("", "S"):
        messages = chat("Hello!", system=system)
        text = evaluate(fields(file.read_text())["TEMPLATE"], system, messages)
        whole = ("<|begin_of_text|>" if adds else "") + text
        assert whole == llama.template.render(messages, add_generation_prompt=True)
        assert whole.count("<|begin_of_text|>") == 1


def test_a_system_prompt_that_a_modelfile_cannot_hold(opened: Opened, tmp_path: Path) -> None:
    recipe = opened.resolved.recipe
    data = recipe.data.model_copy(update={"system": 'Say """x""" and\nPARAMETER y 1'})
    resolved = replace(opened.resolved, recipe=recipe.model_copy(update={"data": data}))
    quoted = replace(opened, resolved=resolved)
    with pytest.raises(InputError, match="cannot hold the system prompt"):
        write_modelfile(gguf_file(tmp_path / "my.gguf", False), quoted)
    with pytest.raises(InputError, match="cannot hold the system prompt"):
        require_modelfile(quoted, "my")


def test_what_can_be_said_before_there_is_a_file(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_modelfile(opened, "my-model")
    with pytest.raises(InputError, match="no model of that name") as refused:
        require_modelfile(opened, "a b")
    assert "retone runs --rename OLD NEW" in refused.value.remedy
    odd = tiny_template()
    render = odd.render
    monkeypatch.setattr(odd, "render", lambda *a, **named: render(*a, **named).lower())
    with pytest.raises(InputError, match="cannot be written as an Ollama template"):
        require_modelfile(replace(opened, template=odd), "my-model")


# --- ollama create ---


def fake_ollama(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0, has: str = ""
) -> Path:
    """A program of that name, which keeps what it was told, and `has` a model already."""
    program = folder / "ollama"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then [ "$2" = "{has}" ]; exit; fi\n'
        f'printf "%s\\n" "$@" > {folder}/told\necho "it broke" >&2\nexit {code}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "told"


def test_ollama_makes_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_ollama(tmp_path, monkeypatch)
    assert create(tmp_path / "a b" / "Modelfile", "my-model:v1")
    assert told.read_text().splitlines() == [
        "create", "my-model:v1", "-f", str(tmp_path / "a b" / "Modelfile"),
    ]  # fmt: skip


def test_somebodys_model_of_that_name_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fake_ollama(tmp_path, monkeypatch, has="my-model")
    assert not create(tmp_path / "Modelfile", "my-model")
    assert not told.exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "Ollama has a model my-model already" in said
    assert "ollama create my-model -f" in said
    assert create(tmp_path / "Modelfile", "other")


def test_without_ollama_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", None)
    assert not create(tmp_path / "a b" / "Modelfile", "my-model")
    told = "".join(capsys.readouterr().err.split())
    assert "".join(f"-f {shlex.quote(str(tmp_path / 'a b' / 'Modelfile'))}".split()) in told


def test_ollama_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ollama(tmp_path, monkeypatch, code=1)
    with pytest.raises(MachineError, match="it broke"):
        create(tmp_path / "Modelfile", "my-model")


@pytest.mark.parametrize("name", ["", "-f", "a b", "x;y", "../x", "a/b/c/d", "x\n"])
def test_names_that_ollama_does_not_take(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = fake_ollama(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="no model of that name"):
        create(tmp_path / "Modelfile", name)
    assert not told.exists()


def test_the_models_of_the_project_are_among_them() -> None:
    families = {"smollm2", "qwen2.5", "qwen3", "llama-3", "llama-3.2", "phi-3", "tinyllama"}
    assert families <= set(ALL)
    assert {"gemma-2"} <= set(MODELS)
