"""What the HTML pages share: text made fit for a page, the template engine, the script policy.

The style sheet and the macros of every page are in `page.html.jinja`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from retone.evaluation.numbers import count, span


def render(template: str, **context: Any) -> str:
    """The page of a template of this folder; everything in `context` is escaped."""
    return _environment().get_template(template).render(context)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("retone.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(csp=csp_hash, span=span, count=count, setting=_setting)
    return environment


def csp_hash(script: str) -> str:
    """The source expression that allows exactly this inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def date(created: str) -> str:
    """A moment in ISO 8601 as people write it; other text as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y}, {moment:%H:%M} {moment.tzname() or ''}".strip()


def readable(value: Any) -> Any:
    """Text that a page can carry: control characters as their pictures, lone surrogates marked.

    Goes through mappings, sequences and dataclasses; sequences become lists.
    """
    if isinstance(value, str):
        text = value.replace("\r\n", "\n").replace("\r", "\n")
        text = re.sub("[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
        text = re.sub("[\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    if isinstance(value, Mapping):
        return {readable(key): readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        clean = {item.name: readable(getattr(value, item.name)) for item in fields(value)}
        return replace(value, **clean)
    return value


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | list | tuple | dict):
        return "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return str(value)
