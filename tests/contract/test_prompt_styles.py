"""Prompt styles: the contract holds on real vocabularies, and they are what their models use."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from chat_models import (
    MULTI,
    ROOT,
    SINGLE,
    WITH_SYSTEM,
    assert_contract,
    chat,
    shared_template,
    tokenizer_of,
)
from retone.chat_template import ChatTemplate, RowRejected
from retone.conversation import Message
from retone.errors import InputError
from retone.prompt_styles import END_OF_TURN, style_text
from retone.rendering import Renderer

VOCABULARIES = ("phi-3", "tinyllama", "qwen3", "llama-3.1", "tiny")
AROUND = {"llama2": (" ", " ")}  # what a style writes around an answer
TRIMMING = ("llama2", "llama3", "gemma")


def bare(vocabulary: str) -> Any:
    """A real tokenizer without its template, as base models have it."""
    tokenizer = copy.deepcopy(tokenizer_of(vocabulary))
    tokenizer.chat_template = None
    return tokenizer


def rendered(tokenizer: Any, text: str, messages: list[Message]) -> str:
    chat = [message.as_dict() for message in messages]
    prompt = messages[-1].role != "assistant"
    return Renderer(tokenizer, text)(chat, add_generation_prompt=prompt)


@pytest.mark.parametrize("style", END_OF_TURN)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_contract(style: str, vocabulary: str) -> None:
    tokenizer = bare(vocabulary)
    template = ChatTemplate(tokenizer, style=style)
    for messages in (SINGLE, MULTI, WITH_SYSTEM):
        rows = assert_contract(tokenizer, template, messages, *AROUND.get(style, ()))
        assert len(rows) == 1
        ids = rows[0].input_ids
        begin = tokenizer.bos_token_id
        assert (begin, begin) not in itertools.pairwise(ids)
    assert template.strategy == "whole"
    assert "Be brief." in template.render(WITH_SYSTEM[:2], add_generation_prompt=True)
    tokenizer.chat_template = template.text  # as a saved tokenizer carries it
    assert ChatTemplate(tokenizer).prompt_ids(MULTI[:3]) == template.prompt_ids(MULTI[:3])


@pytest.mark.parametrize("style", END_OF_TURN)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_turn_ends_with_a_token_of_the_vocabulary(style: str, vocabulary: str) -> None:
    tokenizer = bare(vocabulary)
    template = ChatTemplate(tokenizer, style=style)
    end = END_OF_TURN[style]
    known = end in tokenizer.get_vocab()
    expected = end if known else tokenizer.eos_token
    assert tokenizer.convert_ids_to_tokens(template.stop_id) == expected
    assert template.origin == f"the prompt style {style}" + (
        f"; {end} is not in the vocabulary, so turns end with {tokenizer.eos_token}"
        if end and not known
        else ""
    )


@pytest.mark.parametrize("style", END_OF_TURN)
@pytest.mark.parametrize(
    ("vocabulary", "begins"), [("llama-3.1", True), ("tinyllama", True), ("qwen3", False)]
)
def test_a_text_begins_as_the_tokenizer_begins_texts(
    style: str, vocabulary: str, begins: bool
) -> None:
    tokenizer = bare(vocabulary)
    first = ChatTemplate(tokenizer, style=style).prompt_ids(SINGLE[:1])[0]
    has_place = style not in ("zephyr", "phi3")  # their models write none
    assert (first == tokenizer.bos_token_id) == (begins and has_place)


@pytest.mark.parametrize("style", END_OF_TURN)
def test_white_space_around_answers_is_stripped_where_the_style_trims(style: str) -> None:
    template = ChatTemplate(bare("tinyllama"), style=style)
    messages = chat("Say it.", "  Something. ")
    assert template.strips(messages) == (style in TRIMMING)
    if style in TRIMMING:
        assert template.encode(messages) == template.encode(chat("Say it.", "Something."))


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("chatml", "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
                   "<|im_start|>assistant\nA<|im_end|>\n"),
        ("zephyr", "<|system|>\nS<|endoftext|>\n<|user|>\nQ<|endoftext|>\n"
                   "<|assistant|>\nA<|endoftext|>\n"),
        ("llama2", "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A <|endoftext|>"),
        ("phi3", "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n"
                 "<|endoftext|>"),
        ("alpaca", "S\n\n### Instruction:\nQ\n\n### Response:\nA<|endoftext|>"),
    ],
)  # fmt: skip
def test_text_of_a_style(style: str, text: str) -> None:
    tokenizer = bare("phi-3" if style != "chatml" else "qwen3")
    template = ChatTemplate(tokenizer, style=style)
    assert template.render(chat("Q", "A", system="S"), add_generation_prompt=False) == text


def test_alpaca_with_and_without_an_input() -> None:
    template = ChatTemplate(bare("phi-3"), style="alpaca")
    task = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    plain = template.render(chat("Add."), add_generation_prompt=True)
    assert plain == (
        f"Below is an instruction that describes a task. {task}Add.\n\n### Response:\n"
    )
    with_input = [Message("user", "Add."), Message("user", "1, 2"), Message("assistant", "3")]
    assert template.render(with_input[:2], add_generation_prompt=True) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        f"further context. {task}Add.\n\n### Input:\n1, 2\n\n### Response:\n"
    )
    assert_contract(bare("phi-3"), template, with_input)


# --- the styles are what their models use

OWN = [
    ("zephyr", "tinyllama", ""),
    ("phi3", "phi-3", ""),
    ("phi3", "phi-3", "microsoft-Phi-3.5-mini-instruct"),
    ("gemma", "gemma-2", ""),
]


@pytest.mark.parametrize(("style", "model", "template"), OWN)
def test_a_style_is_its_models_template_byte_for_byte(
    style: str, model: str, template: str
) -> None:
    tokenizer = tokenizer_of(model)
    own = shared_template(template) if template else tokenizer.get_chat_template()
    end = END_OF_TURN[style] or tokenizer.eos_token
    ours = f"{{%- set end_of_turn = {end!r} %}}\n{style_text(style)}"
    conversations = [SINGLE, MULTI] + ([WITH_SYSTEM] if style != "gemma" else [])
    for messages in conversations:
        for shown in range(1, len(messages) + 1):
            part = messages[:shown]
            assert rendered(tokenizer, ours, part) == rendered(tokenizer, own, part)


def test_llama_3_is_byte_for_byte_the_template_of_its_tokenizer() -> None:
    tokenizer = tokenizer_of("llama-3")
    template = ChatTemplate(bare("llama-3"), style="llama3")
    for messages in (SINGLE, MULTI, WITH_SYSTEM):
        for shown in range(1, len(messages) + 1):
            part = messages[:shown]
            own = rendered(tokenizer, tokenizer.chat_template, part)
            assert rendered(tokenizer, template.text, part) == own


@pytest.mark.parametrize("model", ["llama-3.1", "llama-3.2"])
def test_later_llamas_write_a_system_turn_of_their_own(model: str) -> None:
    tokenizer = tokenizer_of(model)
    style = ChatTemplate(bare(model), style="llama3").text
    own = rendered(tokenizer, tokenizer.chat_template, SINGLE)
    begin, rest = rendered(tokenizer, style, SINGLE).split("<|start_header_id|>", 1)
    default, _, after = own.partition("<|eot_id|>")
    assert default.startswith(f"{begin}<|start_header_id|>system<|end_header_id|>\n\nCutting")
    assert after == f"<|start_header_id|>{rest}"


def test_chatml_models_differ_only_in_a_default_system_message() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    style = ChatTemplate(bare("qwen2.5"), style="chatml").text
    for name in ("smollm2", "qwen2.5"):
        own = tokenizer_of(name).get_chat_template()
        assert rendered(tokenizer, style, WITH_SYSTEM) == rendered(tokenizer, own, WITH_SYSTEM)
        plain = rendered(tokenizer, own, SINGLE)
        assert plain.startswith("<|im_start|>system\nYou are ")
        assert plain.endswith(rendered(tokenizer, style, SINGLE))


# --- what is asked for, and what the model has


def test_auto_is_the_models_own_template() -> None:
    template = ChatTemplate(tokenizer_of("tinyllama"))
    assert template.undated == tokenizer_of("tinyllama").get_chat_template()
    assert template.origin == "the model's own chat template"


@pytest.mark.parametrize(
    ("model", "style"), [("tinyllama", "zephyr"), ("phi-3", "phi3"), ("llama-3", "llama3")]
)
def test_a_style_that_equals_the_models_template_is_that_template(model: str, style: str) -> None:
    template = ChatTemplate(tokenizer_of(model), style=style)
    assert template.undated == tokenizer_of(model).get_chat_template()
    assert template.origin.endswith(f"which is the prompt style {style}")


@pytest.mark.parametrize(
    ("model", "style", "found"),
    [
        ("tinyllama", "llama2", "<|user|>"),
        ("tinyllama", "chatml", "<|user|>"),
        ("phi-3", "zephyr", "<|endoftext|>"),
        ("smollm2", "chatml", "You are a helpful AI assistant"),
        ("llama-3.1", "llama3", "system<|end_header_id|>"),
    ],
)
def test_a_style_that_differs_from_the_models_template_is_refused(
    model: str, style: str, found: str
) -> None:
    with pytest.raises(InputError) as refused:
        ChatTemplate(tokenizer_of(model), name="Tiny", style=style)
    assert refused.value.code == "template-mismatch"
    assert refused.value.problem.startswith("Tiny has a chat template of its own, and the prompt")
    assert found in refused.value.found
    assert 'model.template = "auto"' in refused.value.remedy


def test_a_file_overrides_the_models_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(shared_template("Qwen-Qwen2.5-7B-Instruct"))
    template = ChatTemplate(tokenizer_of("qwen3"), style=str(file))
    assert template.undated == file.read_text()
    assert template.origin == f"the file {file.name}, whatever template the model has"
    assert_contract(tokenizer_of("qwen3"), template, MULTI)


@pytest.mark.parametrize(
    ("setting", "found"), [("chatlm", 'did you mean "chatml"'), ("gone/mine.jinja", "No such file")]
)
def test_what_is_neither_a_style_nor_a_file_is_refused(setting: str, found: str) -> None:
    with pytest.raises(InputError) as refused:
        ChatTemplate(tokenizer_of("tinyllama"), style=setting)
    assert refused.value.code == "unknown-template"
    assert found in refused.value.found
    assert "zephyr" in refused.value.remedy


def test_a_model_without_a_template_is_told_the_styles() -> None:
    with pytest.raises(InputError) as refused:
        ChatTemplate(bare("tinyllama"))
    assert refused.value.code == "no-chat-template"
    assert all(style in refused.value.remedy for style in END_OF_TURN)


def test_a_style_needs_a_token_to_stop_on() -> None:
    tokenizer = bare("tiny")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token") as refused:
        ChatTemplate(tokenizer, style="alpaca")
    assert refused.value.code == "no-end-token"


@pytest.mark.parametrize(
    "style", [name for name in END_OF_TURN if name not in ("chatml", "llama3")]
)
def test_a_style_refuses_turns_that_it_has_no_words_for(style: str) -> None:
    template = ChatTemplate(bare("tinyllama"), style=style)
    messages = [SINGLE[0], Message("tool", "42"), SINGLE[1]]
    with pytest.raises(RowRejected, match="this prompt style"):
        template.encode(messages)


def test_every_style_has_a_text_that_names_its_source() -> None:
    folder = ROOT / "src" / "retone" / "tables" / "prompt_styles"
    assert {file.stem for file in folder.glob("*.jinja")} == set(END_OF_TURN)
    assert all(style_text(style).startswith("{#- Source: ") for style in END_OF_TURN)


def test_every_style_is_documented() -> None:
    page = (ROOT / "docs" / "chat_templates.md").read_text()
    section = page.partition("## Which template")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9]+)` \| `?(.+?)`? \|", section, re.M)
    found = {style: end.replace("\\|", "|") for style, end in rows}
    assert found == {name: end or "the end-of-text token" for name, end in END_OF_TURN.items()}
