"""Prepared data and a resolved recipe -> findings, advice and the shape of an epoch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape

from retone import console
from retone.config import Recipe
from retone.data.advice import Advice, advise
from retone.data.batching import epoch_steps, padded_tokens
from retone.data.findings import CHECKS, Finding, lowered, worst_first
from retone.data.preparing import PreparedData
from retone.data.recipe_checks import recipe_findings
from retone.data.spool import read_rows
from retone.data.tasks import LOOKED_AT
from retone.errors import CheckFailed, InputError, nearest
from retone.planning import Resolved

BINS = 20
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Diagnosis:
    """What is known of the data before the first step.

    Attributes:
        findings: worst first; errors that `data.allow` names are warnings here.
        advice: tune, or something cheaper.
        lengths: histogram of the training rows {edges [n + 1], counts [n], max_length, median,
            longest, over} in tokens; over: rows that were left out as too long.
        totals: {rows, trained, masked, cut, ended_share, padding_share, steps_per_epoch} of an
            epoch; the first shares are of rows, padding is of the tokens of all batches.
    """

    findings: tuple[Finding, ...]
    advice: Advice
    lengths: Mapping[str, Any]
    totals: Mapping[str, Any]

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop a run."""
        return [found for found in self.findings if found.severity == "error"]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `--json`, the run and the report."""
        return {
            "findings": [found.as_json() for found in self.findings],
            "advice": self.advice.as_json(),
            "lengths": dict(self.lengths),
            "totals": dict(self.totals),
        }

    def require_sound(self) -> None:
        """Tell people every warning; CheckFailed where an error stands."""
        for found in self.findings:
            if found.severity == "warning":
                console.note(f"{found.code}: {found.message}")
        if not self.errors:
            return
        codes = ", ".join(f'"{found.code}"' for found in self.errors)
        raise CheckFailed(
            "the data or the recipe has errors",
            "; ".join(f"{e.code}: {e.message}; {'; '.join(e.rows)}" for e in self.errors),
            f"{self.errors[0].remedy}; or train all the same: --set 'data.allow=[{codes}]'",
            "findings",
        )

    def show(self) -> None:
        """Print every finding with its rows and what to do, then the advice."""
        to = console.out()
        for found in self.findings:
            style = STYLES[found.severity]
            to.print(f"\n{found.severity} {found.code}: {escape(found.message)}", style=style)
            for row in found.rows:
                to.print(f"  {escape(row)}", style="dim", soft_wrap=True)
            to.print(f"  to do: {escape(found.remedy)}", soft_wrap=True)
        if not self.findings:
            to.print("\nnothing found that is wrong with the rows")
        to.print(f"\n{escape(self.advice.says)}", style="bold")
        to.print(escape("; ".join(self.advice.because)), style="dim")


def allowed(recipe: Recipe) -> list[str]:
    """Codes of the findings that this recipe takes for warnings where they are errors.

    Raises InputError where `data.allow` names no finding.
    """
    for code in recipe.data.allow:
        if code not in CHECKS:
            known = ", ".join(code for code, check in CHECKS.items() if check.severity == "error")
            raise InputError(
                f'there is no finding "{code}"',
                f"data.allow{nearest(code, CHECKS)}; those that stop a run: {known}",
                "mend data.allow",
                "unknown-finding",
            )
    return recipe.data.allow + (["unusable-row"] if recipe.data.bad_rows == "drop" else [])


def diagnose(data: PreparedData, resolved: Resolved, allow: Collection[str]) -> Diagnosis:
    """Findings of rows and recipe, advice, and what an epoch looks like.

    Args:
        data: the prepared rows.
        resolved: the complete recipe.
        allow: as `allowed` gives them.
    """
    sources = data.ledger["sources"]
    too_long = sum(source["dropped"].get("longer-than-max-length", 0) for source in sources)
    train = data.rows("train")
    odd = recipe_findings(
        resolved, rows=len(train), validated=len(data.rows("validation")), too_long=too_long
    )
    looked = read_rows(data.folder / "train.jsonl", LOOKED_AT)
    task = resolved.recipe.data.task
    chosen = resolved.chosen.get("data.task")
    lengths = train.lengths.tolist()
    samples = sum(each["used"] - each["validated"] - each["tested"] for each in sources)
    return Diagnosis(
        tuple(worst_first(lowered(found, allow) for found in [*data.findings, *odd])),
        advise(samples, (task, chosen.because if chosen else "the recipe says so"), looked),
        _histogram(lengths, resolved.recipe.data.max_length, too_long),
        _totals(sources, lengths, resolved),
    )


def _histogram(lengths: Sequence[int], max_length: int | None, over: int) -> dict[str, Any]:
    width = max(1, -(-(max(lengths) + 1) // BINS))
    counts, edges = np.histogram(lengths, np.arange(0, max(lengths) + 1 + width, width))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "max_length": max_length,
        "median": int(np.median(lengths)),
        "longest": max(lengths),
        "over": over,
    }


def _totals(
    sources: Sequence[Mapping[str, Any]], lengths: Sequence[int], resolved: Resolved
) -> dict[str, Any]:
    train = resolved.recipe.train
    steps = epoch_steps(lengths, train.batch_size, train.seed, 0)
    padded = padded_tokens(lengths, train, steps)
    tokens = {
        name: sum(source["tokens"][name] for source in sources)
        for name in ("trained", "masked", "cut")
    }
    return {
        "rows": len(lengths),
        **tokens,
        "ended_share": sum(source["ended"] for source in sources) / len(lengths),
        "padding_share": 1 - sum(lengths) / padded,
        "steps_per_epoch": len(steps),
    }
