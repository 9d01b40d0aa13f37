"""Reading what a teacher wrote: JSON where it managed to, something near it where not."""

from __future__ import annotations

import re
from typing import Any

import json_repair

_MARKS = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,3}[.):])\s+")
_QUOTES = "\"'\u201c\u201d\u2018\u2019"


def object_in(text: str) -> dict[str, Any]:
    """The first JSON object in a text, mended where it is nearly one; empty where there is none."""
    start = text.find("{")
    if start < 0:
        return {}
    found = _loads(text[start:])
    if isinstance(found, list):  # several objects one after another
        found = next((one for one in found if isinstance(one, dict)), {})
    return found if isinstance(found, dict) else {}


def texts_in(text: str, name: str) -> list[str]:
    """The texts of a list: the field `name` of an object, a bare JSON list, or lines with marks."""
    listed = object_in(text).get(name)
    if listed is None and "[" in text:
        listed = _loads(text[text.index("[") :])
    if not isinstance(listed, list):
        lines = (line for line in text.splitlines() if _MARKS.match(line))
        listed = [_MARKS.sub("", line) for line in lines]
    return [clean for one in listed if isinstance(one, str) and (clean := _bare(one))]


def without_surrogates(text: str) -> str:
    """The text with halves of surrogate pairs, which no file can hold, marked."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def plain_words(text: str) -> str:
    """Words and numbers alone, in small letters: case, quotes and line ends do not matter."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _loads(text: str) -> Any:
    """JSON, mended; None where there is none."""
    try:
        return _writable(json_repair.loads(text))
    except (ValueError, RecursionError):
        return None


def _writable(value: Any) -> Any:
    """A JSON value whose texts a file can hold: an escape may have stood for half a pair."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, dict):
        return {_writable(name): _writable(inner) for name, inner in value.items()}
    return [_writable(inner) for inner in value] if isinstance(value, list) else value


def _bare(text: str) -> str:
    """A text without the quotes that stand around the whole of it."""
    text = " ".join(text.split())
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return text[1:-1].strip()
    return text
