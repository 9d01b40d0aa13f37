"""The curves of a training: losses and learning rate over steps, as pictures and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from retone.evaluation import plots
from retone.evaluation.numbers import cell, count, number

Table = Mapping[str, Any]  # a line of metrics.jsonl
CURVE_ROWS = 60  # of the table under a curve


def validated(lines: Sequence[Table]) -> bool:
    """Whether any line has an evaluation loss."""
    return bool(_series(lines, "eval_loss"))


def figures(lines: Sequence[Table], best_step: int | None) -> dict[str, Markup]:
    """The losses and the learning rate over steps."""
    train, evaluation, rates = (_series(lines, name) for name in ("loss", "eval_loss", "lr"))
    found = {}
    if train or evaluation:
        window = max(3, len(train) // 15)
        means = plots.smoothed([loss for _, loss in train], window)
        mean = [(step, loss) for (step, _), loss in zip(train, means, strict=True)]
        drawn = [
            plots.Line(plots.thinned(train), "raw"),
            plots.Line(plots.thinned(mean), "smooth", "training loss"),
            plots.Line(evaluation, "tuned", "", dots=len(evaluation) <= CURVE_ROWS),
        ]
        best = [point for point in evaluation if point[0] == best_step]
        last = (best or evaluation)[-1:]
        words = "lowest" if best else "last"
        text = [f"validation, {words} {loss:#.3g}" for _, loss in last]
        marked = (last[0], text[0]) if last else None
        found["loss"] = plots.line_plot("loss", "Loss over training", drawn, marked=marked)
    if rates:
        top = max(rate for _, rate in rates)
        line = plots.Line(plots.thinned(rates), "plain", f"learning rate, at most {top:.3g}")
        found["rate"] = plots.line_plot("rate", "Learning rate over training", [line], height=150)
    return found


def _series(lines: Sequence[Table], name: str) -> list[tuple[float, float]]:
    found = [(line["step"], number(line.get(name))) for line in lines]
    return [(float(step), value) for step, value in found if value is not None]


def rows(lines: Sequence[Table]) -> list[list[str]]:
    """Step, training loss, validation loss, learning rate; evenly thinned, evaluations kept."""
    every = max(1, math.ceil(len(lines) / CURVE_ROWS))
    kept = [
        line
        for place, line in enumerate(lines)
        if place % every == 0 or line.get("eval_loss") is not None or place == len(lines) - 1
    ]
    names = (("loss", "4g"), ("eval_loss", "4g"), ("lr", "3g"))
    return [
        [count(line["step"]), *(cell(line.get(name), form) for name, form in names)]
        for line in kept
    ]
