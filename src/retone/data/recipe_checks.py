"""Findings about how long and how a model is to be trained, before it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from retone.data.findings import Finding, finding
from retone.planning import Resolved

FEW_STEPS, MANY_EPOCHS = 20, 50
# alpha / rank is 1 or 2 in nearly all published settings (Hu et al. 2021, arXiv:2106.09685; the
# defaults of peft); ten times off is a slip.
HIGHEST_SCALE, LOWEST_SCALE = 20.0, 0.1


def recipe_findings(
    resolved: Resolved, *, rows: int, validated: int, too_long: int
) -> list[Finding]:
    """What is odd about a recipe for this data.

    Args:
        resolved: the complete recipe.
        rows: training rows of an epoch.
        validated: validation rows.
        too_long: rows that were left out because they are longer than `data.max_length`.
    """
    found = _odd(resolved, rows, validated, too_long)
    return [finding(code, 1, detail=detail) for code, detail in found]


def _odd(resolved: Resolved, rows: int, validated: int, too_long: int) -> Iterator[tuple[str, str]]:
    """(code, field and value) of each oddity."""
    train, method, steps = resolved.recipe.train, resolved.recipe.method, resolved.total_steps
    if steps is not None:
        yield from _odd_length(resolved, steps, rows)
    if too_long > rows:
        length = resolved.recipe.data.max_length
        yield "max-length-short", f"{length}: {too_long:,} rows are longer, {rows:,} are not"
    if method.alpha and method.rank:
        scale = method.alpha / method.rank
        if not LOWEST_SCALE < scale < HIGHEST_SCALE:
            yield "alpha-rank", f"{method.alpha:g} / {method.rank} = {scale:g}"
    if not validated:
        yield "evaluation-never", "no row validates"
    elif steps is not None and _given(resolved, "evaluate_every", steps):
        yield "evaluation-never", f"every {train.evaluate_every} steps of {steps}, so at the end"


def _odd_length(resolved: Resolved, steps: int, rows: int) -> Iterator[tuple[str, str]]:
    train = resolved.recipe.train
    if _given(resolved, "warmup_steps", steps):
        yield "warmup-too-long", f"{train.warmup_steps} steps of {steps}"
    if steps < FEW_STEPS:
        yield "few-steps", f"{steps}: {rows:,} rows in steps of {train.batch_size}"
    epochs = steps / max(1, math.ceil(rows / train.batch_size))
    if epochs > MANY_EPOCHS:
        yield "many-epochs", f"{epochs:.0f} times"


def _given(resolved: Resolved, name: str, steps: int) -> bool:
    """Whether the user has set a number of steps to all of the run's or more."""
    chosen = f"train.{name}" in resolved.chosen
    return not chosen and _number(getattr(resolved.recipe.train, name)) >= steps


def _number(value: Any) -> float:
    """A field that `resolve` has filled."""
    assert value is not None
    return float(value)
