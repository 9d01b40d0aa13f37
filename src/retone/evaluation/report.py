"""The report of a run: one self-contained HTML page that proves, or does not, that it took.

    html = render_report(ReportData(title="yoda", run_name="yoda-2", ...))

No network, no external file, a strict Content-Security-Policy, readable without JavaScript, light
and dark, on a phone and on paper. Whatever a model or a user wrote is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from retone.evaluation import curves, data_page, page, plots
from retone.evaluation.data_page import DataReport
from retone.evaluation.numbers import between, count, digits_of, number, plain, signed, size, span

Table = Mapping[str, Any]
SHOWN_PAIRS = 6  # before/after pairs at the top


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows; plain JSON values, so that it can be stored and drawn again.

    Only the first six are required: a section without data is left out.
    """

    title: str  # the recipe's name
    run_name: str
    created: str  # ISO 8601
    verdict: str  # one sentence
    resolved: bool  # the verdict is more than the luck of these rows
    base_note: str  # what to know about the base weights; stands near the top; may be ""
    task: str = ""  # rewrite, persona, qa, instruct, chat
    # [{name, label, what}] in the order of the tables; the tuned model is named "tuned"
    candidates: Sequence[Table] = ()
    # [{name, label, higher_is_better (None: neither end), signature, unit}]; first: the headline
    metrics: Sequence[Table] = ()
    # {candidate: {metric: {value, low, high, n}}}; low and high may be None. A metric that is not
    # there, or has value None, is "no score"; `reason` says why.
    scores: Mapping[str, Table] = field(default_factory=dict)
    # {"tuned-copy": {metric: {value, low, high, p, resolved}}}: tuned minus the other; p_adjusted
    # is shown instead of p where it is there
    differences: Mapping[str, Table] = field(default_factory=dict)
    # {group: {candidate: {metric: score}}}: the headline metric of parts of the rows
    groups: Mapping[str, Mapping[str, Table]] = field(default_factory=dict)
    # [{prompt, reference, showcase, gain, answers: {candidate: text}}]; gain is the sentence chrF
    # (0 to 100) of tuned minus the best candidate without training, or None
    rows: Sequence[Table] = ()
    # lines of metrics.jsonl: {step, epoch, loss, lr, grad_norm, eval_loss?, seconds, rows_per_s,
    # memory_bytes}; losses in nats per trained token
    curves: Sequence[Table] = ()
    best_step: int | None = None
    # [{path, shape, read, used, dropped: {reason: n}, examples: {reason: [str]},
    #   tokens: {trained, masked, cut}, rows, longest_row (tokens), ended?}]
    ledger: Sequence[Table] = ()
    data: DataReport | None = None  # what the data doctor said; not of older runs
    settings: Sequence[Table] = ()  # [{field, value, because}]; because may be ""
    # {steps, seconds, rows, tokens, peak_bytes, best_step, best_loss, parameters: {trained, total}}
    training: Table = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # {stage: seconds}
    # [{name, outcome, path, notes: [str], rows: [(check, found, asked, outcome, what it is)]}]
    exports: Sequence[Table] = ()
    seeds: Sequence[Table] = ()  # [{seed, scores: {metric: value}}] of the tuned model
    provenance: Table = field(default_factory=dict)  # {label: value}
    commands: Sequence[Table] = ()  # [{command, what}]: how to go on
    notes: Sequence[str] = ()  # e.g. the smallest difference these rows can resolve
    votes: str = ""  # the tally of blind votes as a sentence; not part of the verdict
    interval: str = (
        "95\u00a0% intervals, bootstrap over rows"  # what the lines through the dots are
    )


def render_report(data: ReportData) -> str:
    """The whole page as text; write it as UTF-8."""
    clean: ReportData = page.readable(data)
    return page.render(
        "report.html.jinja",
        d=clean,
        date=page.date(clean.created),
        facts=_facts(clean),
        headline=_headline(clean),
        pairs=_pairs(clean),
        answers=_answers(clean),
        figures=_figures(clean),
        curve_rows=curves.rows(clean.curves),
        validated=curves.validated(clean.curves),
        groups=[_score_group(clean, metric) for metric in clean.metrics if clean.scores],
        parts=_parts(clean),
        section=data_page.section(clean.ledger, clean.data),
        reasoned=[row for row in clean.settings if row.get("because")],
        plain=[row for row in clean.settings if not row.get("because")],
    )


# What the page shows


def _score(scores: Mapping[str, Table], candidate: str, metric: str) -> dict[str, Any]:
    """A score whose value, low and high are finite or None; `reason` where there is none."""
    found = scores.get(candidate, {}).get(metric) or {}
    reason = found.get("reason") or "not computed"
    ends = {name: number(found.get(name)) for name in ("value", "low", "high")}
    return {**ends, "n": found.get("n"), "reason": reason}


def _scored(data: ReportData, metric: str) -> tuple[list[dict[str, Any]], int]:
    """A score for every candidate, and the decimals that all of them are shown with."""
    scores = [_score(data.scores, str(one["name"]), metric) for one in data.candidates]
    return scores, digits_of(scores)


def _lanes(data: ReportData, metric: str) -> list[plots.Lane]:
    scores, digits = _scored(data, metric)
    others = [number(seed["scores"].get(metric)) for seed in data.seeds]
    lanes = []
    for candidate, score in zip(data.candidates, scores, strict=True):
        value = score["value"]
        tuned = candidate["name"] == "tuned"
        lanes.append(
            plots.Lane(
                label=str(candidate["label"]),
                value=value,
                low=score["low"],
                high=score["high"],
                text="no score" if value is None else plain(value, digits),
                tuned=tuned,
                seeds=tuple(seed for seed in others if seed is not None) if tuned else (),
            )
        )
    return lanes


def _rows_of(scores: Sequence[Table]) -> str:
    counted = sorted({score["n"] for score in scores if score["n"] is not None})
    return " or ".join(count(n) for n in counted) + (" row" if counted == [1] else " rows")


def _score_group(data: ReportData, metric: Table) -> dict[str, Any]:
    """One metric: its strip, and its rows of the table."""
    name = str(metric["name"])
    scores, digits = _scored(data, name)
    leads = [_difference(data, str(candidate["name"]), name) for candidate in data.candidates]
    lead_digits = digits_of([lead for lead in leads if lead])
    rows = [
        {"candidate": candidate, **_shown(score, digits), "lead": _lead(lead, lead_digits)}
        for candidate, score, lead in zip(data.candidates, scores, leads, strict=True)
    ]
    seeds = [(seed["seed"], number(seed["scores"].get(name))) for seed in data.seeds]
    direction = {True: "higher is better", False: "lower is better", None: ""}
    better = direction[metric.get("higher_is_better", True)]
    about = [text for text in (metric.get("unit"), better, _rows_of(scores)) if text]
    title = f"{metric['label']} of every candidate with its interval"
    return {
        "metric": metric,
        "about": ", ".join(str(text) for text in about),
        "strip": plots.strip_plot(f"strip-{name}", title, _lanes(data, name)),
        "rows": rows,
        "leads": any(row["lead"] for row in rows),
        "seeds": [(seed, plain(value, digits)) for seed, value in seeds if value is not None],
    }


def _parts(data: ReportData) -> list[dict[str, Any]]:
    """The headline metric of each group of rows, one cell a candidate."""
    name = str(data.metrics[0]["name"]) if data.metrics else ""
    scored = {
        group: [_score(by, str(candidate["name"]), name) for candidate in data.candidates]
        for group, by in data.groups.items()
    }
    digits = digits_of([score for scores in scored.values() for score in scores])
    return [
        {
            "name": group or "(none)",
            "rows": _rows_of(scores),
            "cells": [_shown(score, digits) for score in scores],
        }
        for group, scores in scored.items()
    ]


def _shown(score: Table, digits: int) -> dict[str, str]:
    if score["value"] is None:
        return {"value": "no score", "range": "", "reason": str(score["reason"])}
    value = plain(score["value"], digits)
    return {"value": value, "range": between(score, digits), "reason": ""}


def _difference(data: ReportData, rival: str, metric: str) -> Table | None:
    """Tuned minus the rival, where it has a value."""
    found: Table = data.differences.get(f"tuned-{rival}", {}).get(metric) or {}
    return found if number(found.get("value")) is not None else None


def _lead(difference: Table | None, digits: int) -> dict[str, str] | None:
    if difference is None:
        return None
    unresolved = "" if difference.get("resolved", True) else "not resolved"
    tail = ", ".join(text for text in (_p_of(difference), unresolved) if text)
    value = signed(difference["value"], digits)
    return {"value": value, "range": between(difference, digits), "tail": tail}


def _p_of(difference: Table) -> str:
    adjusted = difference.get("p_adjusted")
    p = number(difference.get("p") if adjusted is None else adjusted)
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _headline(data: ReportData) -> dict[str, str]:
    """The verdict up to its first semicolon, its last bracket set apart, and what stands under."""
    verdict, _, rest = data.verdict.partition("; ")
    bracket = re.search(r" (\([^()]*\))$", verdict)
    metric = data.metrics[0] if data.metrics else {}
    sign = -1 if metric.get("higher_is_better") is False else 1
    names = [str(candidate["name"]) for candidate in data.candidates]
    leads = [_difference(data, name, str(metric.get("name"))) for name in names]
    weakest = min(
        (lead for lead in leads if lead), key=lambda lead: sign * lead["value"], default={}
    )
    odds = f" ({_p_of(weakest)})" if _p_of(weakest) else ""
    luck = "is more than" if data.resolved else "may be"
    known = f"The difference {luck} the luck of these rows{odds}." if weakest else ""
    return {
        "verdict": verdict[: bracket.start()] if bracket else verdict,
        "bracket": bracket[1] if bracket else "",
        "under": f"{known} {rest[:1].upper()}{rest[1:]}{'.' if rest else ''}".strip(),
    }


def _pairs(data: ReportData) -> list[dict[str, Any]]:
    """Showcase prompts before and after; before is the base model, else the first rival."""
    names = [str(candidate["name"]) for candidate in data.candidates]
    rivals = [name for name in names if name not in ("tuned", "copy")]
    before = "base" if "base" in rivals else next(iter(rivals), "")
    chosen = [row for row in data.rows if row.get("showcase") and "tuned" in row["answers"]]
    return [
        {
            "prompt": row["prompt"],
            "before": row["answers"].get(before),
            "after": row["answers"]["tuned"],
        }
        for row in chosen[:SHOWN_PAIRS]
    ]


def _answers(data: ReportData) -> list[dict[str, Any]]:
    """Every row with what each candidate said, biggest gain first; `place` is the file order.

    A candidate that only gave the prompt back is left out: the prompt stands there already.
    """
    shown = []
    for place, row in enumerate(data.rows):
        said = [
            (candidate, row["answers"][candidate["name"]])
            for candidate in data.candidates
            if candidate["name"] in row["answers"]
            and (candidate["name"] != "copy" or row["answers"]["copy"] != row["prompt"])
        ]
        gain = number(row.get("gain"))
        text = "" if gain is None else signed(gain, 0)
        shown.append({"place": place, "row": row, "said": said, "gain": gain, "text": text})
    return sorted(shown, key=lambda row: math.inf if row["gain"] is None else -row["gain"])


def _figures(data: ReportData) -> dict[str, Markup]:
    """Name -> picture, of those there is data for."""
    figures: dict[str, Markup] = {}
    if data.metrics and data.scores and data.candidates:
        metric = data.metrics[0]
        title = f"{metric['label']} of every candidate with its interval"
        figures["headline"] = plots.dot_plot("headline", title, _lanes(data, str(metric["name"])))
    return {**figures, **curves.figures(data.curves, data.best_step)}


def _facts(data: ReportData) -> list[tuple[str, str]]:
    """What the run took, as (label, value)."""
    training = data.training
    facts = [
        (name, count(training[name])) for name in ("steps", "rows", "tokens") if name in training
    ]
    if training.get("seconds") and training.get("rows"):
        facts.append(("rows a second", f"{training['rows'] / training['seconds']:.3g}"))
    if training.get("peak_bytes"):
        facts.append(("peak memory", size(training["peak_bytes"])))
    parameters = training.get("parameters")
    if parameters:
        share = parameters["trained"] / max(parameters["total"], 1)
        facts.append(("trained parameters", f"{count(parameters['trained'])} ({share:.1%})"))
    stages = data.seconds or {"train": training.get("seconds") or 0.0}
    return facts + [(f"time to {stage}", span(took)) for stage, took in stages.items() if took]
