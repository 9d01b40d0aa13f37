"""How many rows have how many tokens, as bars, as words and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from retone.evaluation.numbers import count
from retone.evaluation.plots import (
    LETTER,
    NONE,
    Axis,
    axis,
    grid_lines,
    stroke,
    svg,
    tick_labels,
    write,
)

Table = Mapping[str, Any]  # `DataReport.lengths`
HEIGHT = 230  # pixels
TOP, FOOT = 30, HEIGHT - 30  # of the bars; the label of the limit stands above them
LEAST = 2  # pixels of a bar that is not empty: one row among a million is still seen
FAR = 1.5  # a limit beyond so many times the last edge is only named: it would squeeze the bars


def bars(lengths: Table) -> list[tuple[int, int, int]]:
    """From and below how many tokens, and the rows there; nothing where no row is counted."""
    if not any(lengths.get("counts") or ()):
        return []
    spans = pairwise(lengths["edges"])
    return [(low, high, rows) for (low, high), rows in zip(spans, lengths["counts"], strict=True)]


def figure(name: str, lengths: Table) -> Markup:
    """Bars of rows over tokens, and a line at the limit that longer rows are held against."""
    drawn = bars(lengths)
    first, last = drawn[0][0], drawn[-1][1]
    found = lengths.get("max_length")
    limit = math.inf if found is None else float(found)
    near = limit <= FAR * last
    across = axis([first, last, limit if near else last], 6, tight=True)
    up = axis([0, max(rows for *_, rows in drawn)], 4)
    parts = [grid_lines(up, TOP, FOOT), *(_bar(bar, across, up) for bar in drawn), _tokens(across)]
    if near:
        parts.append(_limit(across.at(limit), f"max_length {count(limit)}"))
    elif found is not None:
        parts.append(_label(100, f"max_length {count(limit)} \N{RIGHTWARDS ARROW}", "end"))
    return svg(name, "Rows by their length in tokens", says(lengths), HEIGHT, parts)


def says(lengths: Table) -> str:
    """The lengths in words."""
    limit, over = lengths.get("max_length"), lengths.get("over") or 0
    left_out = f"{count(over)} longer row{' was' if over == 1 else 's were'} left out."
    return " ".join(
        [
            f"Half of the rows have at most {count(lengths['median'])} tokens,"
            f" the longest has {count(lengths['longest'])}.",
            "No max_length is set." if limit is None else f"max_length is {count(limit)}.",
            *([left_out] if over else []),
        ]
    )


def _bar(bar: tuple[int, int, int], across: Axis, up: Axis) -> Markup:
    low, high, rows = bar
    if not rows:
        return NONE
    height = max(LEAST, (FOOT - TOP) * up.at(rows) / 100)
    shape = Markup('<rect class="bar" x="{:g}%" y="{:g}" width="{:g}%" height="{:g}"/>')
    start = across.at(low)
    width = round(across.at(high) - start, 3)
    return shape.format(start, round(FOOT - height, 2), width, round(height, 2))


def _tokens(across: Axis) -> Markup:
    """Round numbers under the bars; the last word of the axis says what they are."""
    last = f"{count(across.high)} tokens"
    ticks = tick_labels(across, FOOT + 20, LETTER, 97 - LETTER * len(last))
    return ticks + write("100%", FOOT + 20, last, "tick", anchor="end")


def _limit(x: float, words: str) -> Markup:
    return stroke(x, TOP - 10, x, FOOT, "limit") + _label(x, words, "end" if x > 50 else "start")


def _label(x: float, words: str, anchor: str) -> Markup:
    return write(f"{x:g}%", TOP - 16, words, "halo tuned-text", anchor=anchor)
