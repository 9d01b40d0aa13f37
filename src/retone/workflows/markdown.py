"""What people or models wrote, as Markdown that reads as the text and does nothing else."""

from __future__ import annotations

import html
import re
from typing import Any

from markupsafe import Markup

from retone.evaluation.page import readable

_SIGNS = re.compile(r"[\\`*_\[\]|~#$]|^[-+=]|^\d+[.)](?= |$)")
_ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "@": "&#64;",
    "://": "&#58;//",
    "www.": "www&#46;",
}


def plain(value: Any) -> str:
    """A value as Markdown that reads as the value, in one line: no markup, link or mention."""
    text = _SIGNS.sub(lambda found: found[0][:-1] + "\\" + found[0][-1], one_line(value))
    for sign, entity in _ENTITIES.items():
        text = text.replace(sign, entity)
    return text


def unescaped(text: str) -> str:
    """The value that `plain` made a text of."""
    return re.sub(r"\\([\W_])", r"\1", html.unescape(text))


def one_line(value: Any) -> str:
    """A value as text in one line, without signs that end lines or steer terminals."""
    return " ".join(str(readable(str(value))).split())


def fenced(text: str, language: str = "") -> Markup:
    """A text as it is, in a block of code; the fence is longer than any in it."""
    shown = str(readable(text))
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{shown}\n{fence}")
