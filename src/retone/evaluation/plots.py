"""The pictures of the report: inline SVG that keeps its text size at every width.

Horizontal positions are per cent of the plot, vertical ones are pixels, so a figure is as readable
on a phone as on a desk. Labels left of the plot stand in the padding of the element around it.
Colours come from the style sheet: `before` is grey, `tuned` the one strong colour.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
Mark = tuple[Point, str]  # a dot and its words
LABEL_CHARACTERS = 15  # of a line left of a plot; a phone still has room for the dots
LABEL_PIXELS = 126  # the padding they stand in
DIRECT_CHARACTERS = 26  # of a label beside a dot
LETTER = 2.3  # per cent of a plot's width that a letter takes on a phone
NARROW_LETTER = 3.8  # the same where names stand at the left
NONE = Markup("")


@dataclass(frozen=True)
class Lane:
    """One candidate of a dot-and-line plot; `text` is the rounded value or "no score"."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    tuned: bool = False
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """A curve; `style` is a class of the style sheet: raw, smooth, plain or tuned."""

    points: Sequence[Point]
    style: str
    label: str = ""
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """A range with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int

    def at(self, value: float) -> float:
        """Position of `value` in per cent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def label(self, tick: float) -> str:
        """A tick as text."""
        small = self.high < 0.001
        return "0" if tick == 0 else f"{tick:.3g}" if small else f"{tick:,.{self.digits}f}"


def axis(values: Sequence[float], ticks: int = 5, *, tight: bool = False) -> Axis:
    """A round axis over `values` with about so many `ticks`; nothing to show gives 0 to 1.

    It starts at zero when that is not far away, and ends at the last value when `tight` (steps).
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if 0 < low <= 0.6 * high:
        low = 0.0
    if high == low:
        low, high = (0.0, high) if high > 0 else (low, low + 1.0)
    rough = (high - low) / ticks
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if rough <= size * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(round(step * number, 12) for number in range(first, last + 1))
    digits = next((n for n in range(9) if abs(step * 10**n - round(step * 10**n)) < 1e-6), 9)
    if tight:
        marks = tuple(mark for mark in marks if low <= mark <= high)
        return Axis(low, high, marks, digits)
    return Axis(marks[0], marks[-1], marks, digits)


def dot_plot(name: str, title: str, lanes: Sequence[Lane]) -> Markup:
    """Every candidate on its own line, named at the left, its value above its dot."""
    scale = axis(_extent(lanes))
    row, bottom = 46, 46 * len(lanes)
    parts = [_tick_lines(scale, bottom, NARROW_LETTER)]
    for number, lane in enumerate(lanes):
        y = row * number + 26
        parts.append(_margin_label(lane, y))
        if lane.value is None:
            parts.append(write("0%", y + 4, lane.text, "muted", dx=4))
            continue
        parts.append(_marks(lane, scale, y, 5.5))
        style = "value tuned-text" if lane.tuned else "value"
        parts.append(write(f"{scale.at(lane.value)}%", y - 12, lane.text, style, anchor="middle"))
    return svg(name, title, _describe(lanes), bottom + 26, parts)


def strip_plot(name: str, title: str, lanes: Sequence[Lane]) -> Markup:
    """Every candidate on a thin line of its own, named and valued beside its dot."""
    scale = axis(_extent(lanes))
    parts: list[Markup] = []
    y = 4
    for lane in lanes:
        label = f"{_cut(lane.label)} {lane.text}"
        style = "direct tuned-text" if lane.tuned else "direct"
        low, high = (scale.at(end) for end in _ends(lane))
        if lane.value is None:
            parts.append(write("0%", y + 15, label, "muted", dx=4))
        elif max(low, 100 - high) < LETTER * (len(label) + 1):  # no room beside it: above it
            y += 14
            middle = min(max((low + high) / 2, 34), 66)
            parts.append(write(f"{middle:g}%", y, label, style, anchor="middle"))
        elif 100 - high >= low:
            parts.append(write(f"{high}%", y + 15, label, style, dx=11))
        else:
            parts.append(write(f"{low}%", y + 15, label, style, dx=-11, anchor="end"))
        parts.append(_marks(lane, scale, y + 11, 4.5))
        y += 24
    return svg(name, title, _describe(lanes), y + 24, [_tick_lines(scale, y, LETTER), *parts])


def line_plot(
    name: str, title: str, lines: Sequence[Line], height: int = 230, marked: Mark | None = None
) -> Markup:
    """Curves over steps, each named at its highest point; `marked` is a point with words."""
    points = [point for line in lines for point in line.points]
    across = axis([x for x, _ in points], 4, tight=True)
    up = axis([y for _, y in points], 4)
    top, foot = 22, height - 30

    def place(point: Point) -> Point:
        return across.at(point[0]), round(foot - (foot - top) * up.at(point[1]) / 100, 2)

    parts = [grid_lines(up, top, foot), _steps(across, foot)]
    shapes, over = [], []
    for line in lines:
        placed = [place(point) for point in line.points]
        path = " ".join(f"{x * 10:g},{y:g}" for x, y in placed)
        shapes.append(Markup('<polyline class="{}" points="{}"/>').format(line.style, path))
        if line.dots:
            over += [_circle(x, y, 3, "point") for x, y in placed]
        if line.label and placed:
            over.append(_named(line, min(placed, key=lambda point: point[1])))
    inner = Markup(
        '<svg class="fluid" width="100%" height="{0}" viewBox="0 0 1000 {0}" '
        'preserveAspectRatio="none">{1}</svg>'
    ).format(height, NONE.join(shapes))
    if marked:
        near = [place(point) for point in points]
        over += _mark(place(marked[0]), marked[1], near, foot)
    said = [_story(line) for line in lines if line.label and line.points]
    said += [marked[1]] if marked else []
    return svg(name, title, ". ".join(said) + ".", height, [*parts, inner, *over])


def stacked_line(name: str, title: str, parts: Sequence[tuple[str, float, str]]) -> Markup:
    """One thin line in shares; parts are (label, amount, text), at most three of them.

    The first is labelled above at the left, the second above at the right, the third below.
    """
    total = sum(amount for _, amount, _ in parts) or 1.0
    drawn: list[Markup] = []
    start = 0.0
    for number, (label, amount, text) in enumerate(parts):
        share = 100 * amount / total
        if share > 0:
            rect = Markup('<rect class="part{}" x="{:.3f}%" y="24" width="{:.3f}%" height="8"/>')
            drawn.append(rect.format(number, start, share))
        words = f"{label} {text}"
        if number == 0:
            drawn.append(write("0%", 15, words, "direct"))
        elif amount > 0 or number == 1:
            drawn.append(write("100%", 15 if number == 1 else 50, words, "direct", anchor="end"))
        start += share
    said = ", ".join(f"{label} {text}" for label, _, text in parts) + "."
    return svg(name, title, said, 58 if any(part[1] for part in parts[2:]) else 38, drawn)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean over `window` values (fewer at the ends)."""
    half = window // 2
    near = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    return [sum(some) / len(some) for some in near]


def thinned(points: Sequence[Point], most: int = 600) -> list[Point]:
    """Every so many-th point and the last one."""
    every = max(1, math.ceil(len(points) / most))
    return [*points[:-1:every], *points[-1:]]


def svg(name: str, title: str, desc: str, height: int, parts: Sequence[Markup]) -> Markup:
    """A picture with a title and a description for those who do not see it."""
    return Markup(
        '<svg role="img" aria-labelledby="{0}-title {0}-desc" width="100%" height="{1}">'
        '<title id="{0}-title">{2}</title><desc id="{0}-desc">{3}</desc>{4}</svg>'
    ).format(name, height, title, desc, NONE.join(parts))


def write(x: str, y: float, text: str, style: str, dx: float = 0, anchor: str = "start") -> Markup:
    """Text at x per cent and y pixels, dx pixels to the right."""
    return Markup('<text class="{}" x="{}" y="{:g}" dx="{:g}" text-anchor="{}">{}</text>').format(
        style, x, y, dx, anchor, text
    )


def _circle(x: float, y: float, radius: float, style: str) -> Markup:
    return Markup('<circle class="{}" cx="{:g}%" cy="{:g}" r="{:g}"/>').format(style, x, y, radius)


def stroke(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line: per cent across, pixels down."""
    shape = Markup('<line class="{}" x1="{:g}%" y1="{:g}" x2="{:g}%" y2="{:g}"/>')
    return shape.format(style, x1, y1, x2, y2)


def _marks(lane: Lane, scale: Axis, y: float, radius: float) -> Markup:
    """The interval, the dot on it, and a ring below for each further seed."""
    if lane.value is None:
        return NONE
    style = "tuned" if lane.tuned else "before"
    low, high = _ends(lane)
    drawn = [stroke(scale.at(low), y, scale.at(high), y, f"interval {style}")] if low < high else []
    drawn.append(_circle(scale.at(lane.value), y, radius, f"dot {style}"))
    drawn += [_circle(scale.at(seed), y + 10, 2.5, f"ring {style}") for seed in lane.seeds]
    return NONE.join(drawn)


def _margin_label(lane: Lane, y: float) -> Markup:
    lines = textwrap.wrap(lane.label, LABEL_CHARACTERS, max_lines=2, placeholder="…") or [""]
    first = y + 5 - 8 * (len(lines) - 1)
    style = "label tuned-text" if lane.tuned else "label"
    return NONE.join(
        write("0%", first + 16 * number, words, style, dx=-LABEL_PIXELS)
        for number, words in enumerate(lines)
    )


def _tick_lines(scale: Axis, bottom: float, letter: float) -> Markup:
    """Upright lines through a dot plot, with their values under it."""
    lines = [stroke(x, 0, x, bottom, "grid") for x in map(scale.at, scale.ticks)]
    return NONE.join(lines) + tick_labels(scale, bottom + 18, letter, 110)


def tick_labels(scale: Axis, y: float, letter: float, stop: float) -> Markup:
    """Values along the foot of a plot, of those that stand clear of each other and of `stop`."""
    drawn, free = [], -100.0
    for tick in scale.ticks:
        x, text = scale.at(tick), scale.label(tick)
        width = letter * len(text)
        anchor = "middle" if len(text) < 4 or 0 < x < 100 else "start" if x == 0 else "end"
        left = _left(x, width, anchor)
        if left >= free and left + width <= stop:
            drawn.append(write(f"{x}%", y, text, "tick", anchor=anchor))
            free = left + width + letter
    return NONE.join(drawn)


def _left(x: float, width: float, anchor: str) -> float:
    return x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]


def grid_lines(up: Axis, top: float, foot: float) -> Markup:
    """Level lines of a curve plot, with their values in the margin."""
    drawn = []
    for tick in up.ticks:
        y = round(foot - (foot - top) * up.at(tick) / 100, 2)
        label = write("0%", y + 4, up.label(tick), "tick", dx=-10, anchor="end")
        drawn.append(stroke(0, y, 100, y, "grid") + label)
    return NONE.join(drawn)


def _steps(across: Axis, foot: float) -> Markup:
    """Round steps under a curve plot; the last word of the axis says what they are."""
    last = f"step {across.high:,.0f}"
    labels = tick_labels(across, foot + 20, LETTER, 97 - LETTER * len(last))
    return labels + write("100%", foot + 20, last, "tick", anchor="end")


def _named(line: Line, placed: Point) -> Markup:
    x, y = placed
    anchor = "end" if x > 50 else "start"
    return write(f"{x}%", y - 9, line.label, f"halo {line.style}-text", anchor=anchor)


def _mark(placed: Point, words: str, drawn: Sequence[Point], foot: float) -> list[Markup]:
    """A dot whose words stand clear of what is `drawn` around it, above or below."""
    x, y = placed
    reach = LETTER * len(words)
    anchor = "end" if x > reach else "start" if x < 100 - reach else "middle"
    left = _left(x, reach, anchor)
    near = [y, *(height for at, height in drawn if left <= at <= left + reach)]
    above, below = min(near) - 14, max(near) + 25
    at = below if below < min(foot - 4, 2 * y - above) or above < 12 else above
    label = write(f"{x}%", at, words, "halo tuned-text", anchor=anchor)
    return [_circle(x, y, 6, "dot tuned"), label]


def _ends(lane: Lane) -> Point:
    """The interval, or the value twice."""
    value = lane.value if lane.value is not None else 0.0
    low = value if lane.low is None else min(lane.low, value)
    return low, value if lane.high is None else max(lane.high, value)


def _extent(lanes: Sequence[Lane]) -> list[float]:
    scored = [lane for lane in lanes if lane.value is not None]
    ends = [end for lane in scored for end in _ends(lane)]
    return ends + [seed for lane in scored for seed in lane.seeds]


def _story(line: Line) -> str:
    (first, start), (last, end) = line.points[0], line.points[-1]
    return f"{line.label}: {start:.3g} at step {first:,.0f}, {end:.3g} at step {last:,.0f}"


def _cut(label: str) -> str:
    return label if len(label) <= DIRECT_CHARACTERS else label[: DIRECT_CHARACTERS - 1] + "…"


def _describe(lanes: Sequence[Lane]) -> str:
    return ", ".join(f"{lane.label} {lane.text}" for lane in lanes) + "."
