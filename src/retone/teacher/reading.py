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


def _loads(text: str) -> Any:
    """JSON, mended; None where there is none. Escapes cannot hide what no file can hold."""
    try:
        return json_repair.loads(re.sub(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", _paired, text))
    except (ValueError, RecursionError):
        return None


def _paired(escape: re.Match[str]) -> str:
    """An escaped half of a surrogate pair as it is, unless the other half is not beside it."""
    text, at = escape.string, escape.start()
    high = escape[0][3] in "89abAB"
    other = text[escape.end() : escape.end() + 6] if high else text[max(0, at - 6) : at]
    wanted = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}" if high else r"\\u[dD][89abAB][0-9a-fA-F]{2}"
    return escape[0] if re.fullmatch(wanted, other) else "\\ufffd"


def _bare(text: str) -> str:
    """A text without the quotes that stand around the whole of it."""
    text = " ".join(text.split())
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return text[1:-1].strip()
    return text
