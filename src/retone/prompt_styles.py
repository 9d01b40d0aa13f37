"""Prompt styles: chat templates for models that come without one.

The texts are `tables/prompt_styles/*.jinja`; each names its source. They use two names that are set
here for the tokenizer at hand: `end_of_turn`, and `bos_token`, which is empty where the tokenizer
itself begins no text with one. Loads without torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from retone.conversation import Message
from retone.errors import InputError, nearest
from retone.rendering import Renderer, RowRejected, difference
from retone.template_probe import DIALOGUE
from retone.tokens import end_ids

AUTO = "auto"
# The string that ends a turn; an empty one is the tokenizer's own end-of-text token.
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "zephyr": "",
    "llama2": "",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "gemma": "<end_of_turn>",
    "alpaca": "",
}


class Chosen(NamedTuple):
    """The text of a chat template, and in words where it comes from."""

    text: str
    origin: str


def choose_template(tokenizer: Any, setting: str, name: str) -> Chosen:
    """The template that `model.template` asks for.

    Args:
        tokenizer: of the model.
        setting: `auto`, a prompt style, or the path of a Jinja file. A path overrides whatever
            template the model has; a style must not render differently from it.
        name: what messages call the model.

    Raises:
        InputError: `no-chat-template`, `template-mismatch`, `unknown-template`, `no-end-token`.
    """
    if setting == AUTO:
        return Chosen(_own_template(tokenizer, name), "the model's own chat template")
    if setting not in END_OF_TURN:
        return _from_file(setting)
    chosen = _styled(tokenizer, setting, name)
    try:
        own = _own_template(tokenizer, name)
    except InputError:
        return chosen
    if differs := _first_difference(tokenizer, own, chosen.text):
        raise InputError(
            f'{name} has a chat template of its own, and the prompt style "{setting}" writes '
            "other prompts than those it was trained on",
            f"by its own template and by the style: {differs}",
            'model.template = "auto"; to override it all the same, write a template to a file and '
            "give its path: model.template = my_template.jinja",
            "template-mismatch",
        )
    return Chosen(own, f"the model's own chat template, which is the prompt style {setting}")


@cache
def style_text(style: str) -> str:
    """The Jinja text of a style, before `end_of_turn` and `bos_token` are set."""
    file = files("retone") / "tables" / "prompt_styles" / f"{style}.jinja"
    return file.read_text(encoding="utf-8").removesuffix("\n")


def _own_template(tokenizer: Any, name: str) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"{name} has no chat template",
            f"the tokenizer says: {error}",
            "use an instruction-tuned model, or set model.template to one of "
            f"{', '.join(END_OF_TURN)}, or to the path of a Jinja file",
            "no-chat-template",
        ) from error


def _from_file(setting: str) -> Chosen:
    path = Path(setting)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f'there is no chat template "{setting}"',
            f"neither a prompt style{nearest(setting, END_OF_TURN)} nor a file to read: {error}",
            f"model.template = auto, {', '.join(END_OF_TURN)}, or the path of a Jinja file",
            "unknown-template",
        ) from error
    # Its name alone: cards and reports, which others read, say where a template comes from.
    return Chosen(text, f"the file {path.name}, whatever template the model has")


def _styled(tokenizer: Any, style: str, name: str) -> Chosen:
    """A style with the end of turn and the first token of this tokenizer."""
    eos = tokenizer.eos_token
    if eos is None:
        raise InputError(
            f'the prompt style "{style}" cannot be used with {name}',
            "its tokenizer has no end-of-text token to stop on",
            "set eos_token in the model's tokenizer_config.json",
            "no-end-token",
        )
    end = END_OF_TURN[style]
    origin = f"the prompt style {style}"
    known = tokenizer.added_tokens_encoder.get(end) in end_ids(tokenizer)
    if end and not known:
        origin += f"; {end} is not in the vocabulary, so turns end with {eos}"
    lines = [
        f"{{%- set end_of_turn = {end!r} %}}" if known else "{%- set end_of_turn = eos_token %}"
    ]
    if not _begins_texts(tokenizer):
        lines.append("{%- set bos_token = '' %}")
    return Chosen("\n".join([*lines, style_text(style)]), origin)


def _begins_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a first token before every plain text."""
    begin = tokenizer.bos_token_id
    return begin is not None and tokenizer("a")["input_ids"][:1] == [begin]


def _first_difference(tokenizer: Any, own: str, style: str) -> str:
    """Where two templates render a plain conversation or its prompt differently, or nothing."""
    for end in range(1, len(DIALOGUE) + 1):
        texts = [_render(tokenizer, text, DIALOGUE[:end]) for text in (own, style)]
        if texts[0] != texts[1]:
            return difference(*texts)
    return ""


def _render(tokenizer: Any, text: str, messages: Sequence[Message]) -> str:
    chat = [message.as_dict() for message in messages]
    prompt = messages[-1].role == "user"
    try:
        return Renderer(tokenizer, text)(chat, add_generation_prompt=prompt)
    except RowRejected as rejected:
        return str(rejected)
