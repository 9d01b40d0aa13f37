"""Row shapes -> Conversation: a table. The first shape whose columns are all there is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retone.conversation import ROLES, Conversation, Message
from retone.data.sources import Row, broken_rows
from retone.errors import InputError, nearest

# Pairs of column names that stand for prompt and completion when a recipe names none.
PAIR_COLUMNS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("source", "target"),
    ("plain", "styled"),
)


class RowProblem(Exception):
    """A row that does not have what its shape needs; collected, never shown alone."""


@dataclass(frozen=True)
class Shape:
    """A recognised row shape.

    Attributes:
        name: pair or messages.
        evidence: the columns that told.
        convert: row -> messages; raises RowProblem.
        columns: columns that became messages (the others are kept as extra).
    """

    name: str
    evidence: str
    convert: Callable[[Row], tuple[Message, ...]]
    columns: tuple[str, ...]


def detect_shape(rows: list[Row], columns: Mapping[Any, str], path: Path) -> Shape:
    """Find the shape of a file from its first row, or from the columns the recipe names."""
    present = list(rows[0])
    if columns:
        pair = (columns.get("prompt", "prompt"), columns.get("completion", "completion"))
        missing = [name for name in pair if name not in present]
        if missing:
            raise InputError(
                "the data file lacks the columns that the recipe names",
                f"{path}: no column {', '.join(missing)}{nearest(missing[0], present)}; "
                f"there are {', '.join(present)}",
                'data.columns = { prompt = "...", completion = "..." }',
                "missing-column",
            )
        return _pair_shape(*pair)
    if "messages" in present:
        return Shape("messages", "column messages", _convert_messages, ("messages",))
    for pair in PAIR_COLUMNS:
        if set(pair) <= set(present):
            return _pair_shape(*pair)
    raise InputError(
        "the rows have no shape that is known",
        f"{path}: columns {', '.join(present)}",
        '--set \'data.columns={prompt="COLUMN", completion="COLUMN"}\'',
        "unknown-shape",
    )


def to_conversations(
    rows: list[Row], shape: Shape, path: Path, system: str | None
) -> list[Conversation]:
    """Convert every row; InputError that names all rows without what the shape needs."""
    conversations: list[Conversation] = []
    problems: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            messages = shape.convert(row)
        except RowProblem as problem:
            problems.append(f"row {number}: {problem}")
            continue
        if system is not None and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        extra = {key: value for key, value in row.items() if key not in shape.columns}
        conversations.append(Conversation(messages, path.name, number, extra))
    if problems:
        raise broken_rows(path, problems)
    return conversations


def _pair_shape(prompt: str, completion: str) -> Shape:
    def convert(row: Row) -> tuple[Message, ...]:
        return (
            Message("user", _text(row, prompt)),
            Message("assistant", _text(row, completion)),
        )

    return Shape("pair", f"columns {prompt} and {completion}", convert, (prompt, completion))


def _convert_messages(row: Row) -> tuple[Message, ...]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise RowProblem(f"field messages: a list of turns is expected, found {_brief(turns)}")
    messages = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowProblem(f"messages[{index}]: an object is expected, found {_brief(turn)}")
        role = turn.get("role")
        if role not in ROLES:
            raise RowProblem(f"messages[{index}].role: found {_brief(role)}, known {ROLES}")
        weight = turn.get("weight", turn.get("loss_weight"))
        if weight is not None and (
            isinstance(weight, bool) or not isinstance(weight, (int, float))
        ):
            raise RowProblem(
                f"messages[{index}].weight: a number is expected, found {_brief(weight)}"
            )
        content = _text(turn, "content", f"messages[{index}].")
        messages.append(Message(role, content, None if weight is None else float(weight)))
    if not any(message.role == "assistant" for message in messages):
        raise RowProblem("field messages: no assistant turn")
    return tuple(messages)


def _text(row: Row, name: str, place: str = "") -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise RowProblem(f"field {place}{name}: text is expected, found {_brief(value)}")
    if not value.strip():
        raise RowProblem(f"field {place}{name}: empty")
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return "nothing" if value is None else text if len(text) <= 40 else text[:39] + "…"
