"""Numbers as the pages show them: no finer than their intervals, with true minus signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retone.evaluation.statistics import decimals


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: float) -> str:
    """A whole number with thousands set apart."""
    return f"{number:,.0f}"


def size(amount: float) -> str:
    """Bytes in three figures."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"


def signed(value: float, digits: int) -> str:
    """A difference with its sign; what rounds to zero has none."""
    text = f"{value:+,.{digits}f}"
    zero = not text.strip("+-0.,")
    return text[1:] if zero else text.replace("-", "\N{MINUS SIGN}")


def plain(value: float, digits: int) -> str:
    """A value with a true minus sign where it needs one."""
    return signed(value, digits).lstrip("+")


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def digits_of(values: Sequence[Mapping[str, Any]]) -> int:
    """Decimals of a column: what its narrowest interval supports."""
    ends = [(number(value.get("low")), number(value.get("high"))) for value in values]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    narrow = min((width for width in widths if width > 0), default=None)
    largest = max((abs(number(value.get("value")) or 0.0) for value in values), default=0.0)
    return decimals(0.0, narrow, 1 if largest >= 10 else 3)


def between(score: Mapping[str, Any], digits: int) -> str:
    """The ends of an interval, or nothing."""
    low, high = number(score.get("low")), number(score.get("high"))
    if low is None or high is None:
        return ""
    return f"{plain(low, digits)} to {plain(high, digits)}"


def cell(value: Any, form: str) -> str:
    """A number of a table, or nothing."""
    found = number(value)
    return "" if found is None else format(found, form)
