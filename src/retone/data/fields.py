"""Single fields of a row, read strictly: what is wrong is said with the field's path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from retone.conversation import Conversation, Document, Preference
from retone.data.private import veiled
from retone.data.sources import Row

DEEPEST = 64  # levels of lists and objects in a row
HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can write what UTF-8 cannot
BRIEF = 40  # characters of a value quoted in a message
LOOKED_AT = 1000  # characters of a value that are searched for secrets
SYSTEM_COLUMNS = ("system", "system_prompt")


class RowProblem(Exception):
    """A row that does not have what its shape needs; collected, never shown alone.

    Attributes:
        field: path of the field, beginning with a column: `messages[2].content`.
        what: what was expected and what was found.
    """

    def __init__(self, field: str, what: str) -> None:
        super().__init__(field, what)
        self.field = field
        self.what = what

    def __str__(self) -> str:
        return f"field {self.field}: {self.what}"


class Reading(NamedTuple):
    """How the rows of a source are read.

    Attributes:
        evidence: what told, in words.
        columns: columns that are read where a row has them; the others are kept as extra.
        read: row -> samples without source, row number and the other columns; raises RowProblem.
    """

    evidence: str
    columns: tuple[str, ...]
    read: Callable[[Row], Sequence[Conversation | Preference | Document]]


def text(row: Row, name: str, place: str = "") -> str:
    """The text of a field that must have one; `place` is the path before the name."""
    return as_text(row.get(name), place + name)


def as_text(value: Any, place: str) -> str:
    """`value`, which must be a text of more than white space."""
    if not isinstance(value, str):
        raise RowProblem(place, f"text is expected, found {brief(value)}")
    if not value.strip():
        raise RowProblem(place, "empty")
    if not value.isascii() and (half := HALF_PAIR.search(value)):
        raise RowProblem(place, f"half of a surrogate pair, {half[0]!r}, which is no character")
    return value


def optional_text(row: Row, *names: str, place: str = "") -> str:
    """The text of the first of these columns that has any; empty where none has."""
    for name in names:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise RowProblem(place + name, f"text is expected, found {brief(value)}")
        if value and value.strip():
            return value
    return ""


def as_list(value: Any) -> list[Any] | None:
    """A list, also one written as JSON text, as in the cells of a CSV file; None otherwise."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parsed(value, "")
        except RowProblem:
            return None
    return value if isinstance(value, list) else None


def parsed(value: Any, place: str) -> Any:
    """What a JSON text says; a value that is no text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowProblem(place, f"JSON is expected, found {brief(value)}") from error
    check_depth(found, place)
    return found


def check_depth(value: Any, place: str) -> None:
    """RowProblem where lists and objects are nested deeper than any real row."""
    level = [value]
    for _ in range(DEEPEST):
        nested = [inner for inner in level if isinstance(inner, list | dict)]
        if not nested:
            return
        level = [
            inner
            for outer in nested
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    raise RowProblem(place, f"nested deeper than {DEEPEST} levels")


def brief(value: Any) -> str:
    """A value as it is quoted in messages."""
    if value is None:
        return "nothing"
    # Only the beginning is written out: a value may hold megabytes.
    if isinstance(value, list | dict):
        article, noun = ("a", "list") if isinstance(value, list) else ("an", "object")
        return f"{article} {noun} of {len(value)}" if value else f"an empty {noun}"
    if isinstance(value, str):  # a secret is not repeated, and not cut before it is known as one
        value = veiled(value[:LOOKED_AT])
    shown = repr(value[: BRIEF + 1] if isinstance(value, str | bytes) else value)
    return shown if len(shown) <= BRIEF else shown[: BRIEF - 1] + "…"
