"""Rows that look like a known shape and are not: refused with what to do instead."""

from __future__ import annotations

from collections.abc import Sequence

from retone.data.sources import Row
from retone.data.turns import CHAT_COLUMNS, CONTENT_KEYS
from retone.errors import InputError

SEARCHED = 20_000  # characters of a text in which turns of a rendered chat are looked for
# Style -> what stands before a user's turn and before the answer to it.
RENDERED = {
    "### Human / ### Assistant": ("### Human", "### Assistant"),
    "### Instruction / ### Response": ("### Instruction", "### Response"),
    "### User / ### Assistant": ("### User", "### Assistant"),
    "<|im_start|>": ("<|im_start|>user", "<|im_start|>assistant"),
    "<|start_header_id|>": ("<|start_header_id|>user", "<|start_header_id|>assistant"),
    "<|user|> / <|assistant|>": ("<|user|>", "<|assistant|>"),
    "<start_of_turn>": ("<start_of_turn>user", "<start_of_turn>model"),
    "[INST]": ("[INST]", "[/INST]"),
    "Human: / Assistant:": ("Human:", "\n\nAssistant:"),
    "USER: / ASSISTANT:": ("USER:", "ASSISTANT:"),
}
AS_TURNS = 'one row per conversation: {"messages": [{"role": "user", "content": "..."}, ...]}'


def refuse_look_alikes(rows: Sequence[Row], file: str) -> None:
    """InputError where at least half of the rows are no data that can be trained on as it is.

    These are chats that a template has already rendered into one text (its special tokens would be
    read as plain characters, and the prompts trained like answers), single turns without their
    conversation, and token ids.
    """
    for test in (_rendered, _single_turn, _tokenised):
        hits = [(number, hit) for number, row in enumerate(rows, 1) if (hit := test(row))]
        if hits and 2 * len(hits) >= len(rows):
            number, (problem, found, remedy, code) = hits[0]
            raise InputError(problem, f"{file}, row {number}: {found}", remedy, code)


def _rendered(row: Row) -> tuple[str, str, str, str] | None:
    for column in ("text", *CHAT_COLUMNS):
        style = rendered_chat(row.get(column))
        if style is not None:
            return (
                "the rows are chats that have already been rendered as text",
                f"field {column}: turns marked by {style}",
                f"{AS_TURNS}; to train on the markers as plain text: --set data.format=text",
                "rendered-chat",
            )
    return None


def _single_turn(row: Row) -> tuple[str, str, str, str] | None:
    content = next((key for key in CONTENT_KEYS if key in row), None)
    if "role" not in row or content is None:
        return None
    return (
        "each row is one turn, not a conversation",
        f"columns role and {content}",
        f"put the turns of a conversation together, {AS_TURNS}",
        "single-turns",
    )


def _tokenised(row: Row) -> tuple[str, str, str, str] | None:
    if "input_ids" not in row:
        return None
    return (
        "the rows are already tokenised",
        "field input_ids",
        f"give the text instead, {AS_TURNS}: the model's own template and tokenizer are applied",
        "tokenised-rows",
    )


def rendered_chat(value: object) -> str | None:
    """The style of a text that holds turns a chat template has already rendered; None: plain."""
    if not isinstance(value, str):
        return None
    beginning = value[:SEARCHED]
    for style, (user, assistant) in RENDERED.items():
        _, asked, rest = beginning.partition(user)
        if asked and assistant in rest:
            return style
    return None
