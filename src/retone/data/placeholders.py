"""Placeholders such as {{name}} in rows, filled from `data.values`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retone.errors import InputError

PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")


class Filler:
    """Puts values in the place of placeholders, and remembers the names that have none.

    Attributes:
        missed: how many placeholders had no value.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self.missed = 0
        self._values = values
        self._places: dict[str, str] = {}  # name without a value -> where it was found first

    def fill(self, value: Any, place: str) -> Any:
        """`value` with the placeholders in all its texts replaced, to any depth."""
        if isinstance(value, str):
            return self._fill_text(value, place) if "{{" in value else value
        if isinstance(value, list):
            return [self.fill(inner, place) for inner in value]
        if isinstance(value, dict):
            return {key: self.fill(inner, place) for key, inner in value.items()}
        return value

    def require_all(self) -> None:
        """InputError that lists every name without a value."""
        if not self._places:
            return
        found = "; ".join(f"{{{{{name}}}}} in {place}" for name, place in self._places.items())
        flags = ", ".join(f'{name}="..."' for name in self._places)
        first = next(iter(self._places))
        raise InputError(
            "placeholders in the data have no value",
            found,
            f"--set 'data.values={{{flags}}}'; where the braces are meant as they stand, "
            f'{first}="{{{{{first}}}}}"',
            "unfilled-placeholders",
        )

    def _fill_text(self, text: str, place: str) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] in self._values:
                return self._values[match[1]]
            self.missed += 1
            self._places.setdefault(match[1], place)
            return match[0]

        return PLACEHOLDER.sub(value, text)
