"""Helpers of the tests that convert rows: a few rows in, samples or what is wrong with them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from retone.config import SourceSection
from retone.conversation import Message
from retone.data.formats import Sample, Shape, convert, detect_shape
from retone.data.sources import BadRows, Item
from retone.errors import InputError

Row = dict[str, Any]
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day!"}]
BE_KIND = ("system", "Be kind.")
TOOL = {"name": "weather", "description": "Looks out.", "parameters": {"type": "object"}}
WRAPPED_TOOL = {"type": "function", "function": TOOL}


class Read(NamedTuple):
    shape: Shape
    samples: list[Sample]
    bad: BadRows


def read(
    *rows: Row,
    form: str = "auto",
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    values: Mapping[str, str] | None = None,
) -> Read:
    source = SourceSection(path="rows.jsonl", format=form, columns=dict(columns or {}))
    shape = detect_shape(rows, source, "rows.jsonl")
    bad = BadRows()
    items = [Item(row, "rows.jsonl", number) for number, row in enumerate(rows, 1)]
    samples = list(convert(items, shape, system=system, values=values or {}, bad=bad))
    return Read(shape, samples, bad)


def one(row: Row, **options: Any) -> Any:
    """The only sample of a row that can be read."""
    found = read(row, **options)
    assert found.bad.texts == []
    (sample,) = found.samples
    return sample


def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def problem(*rows: Row, **options: Any) -> str:
    """What is said of the only bad row."""
    found = read(*rows, **options)
    assert found.bad.count == 1
    return found.bad.texts[0]


def refused(*rows: Row, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(*rows, **options)
    return caught.value
