"""What is known of the data: a page of its own, and the section of the report that says the same.

    html = render_data_page(DataReport(title="pairs.csv", verdict="612 of 648 ...", ...))

As self-contained and as strict as the report; needs no JavaScript at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retone.data.findings import SEVERITIES
from retone.evaluation import histogram, page, plots
from retone.evaluation.numbers import count, number

Table = Mapping[str, Any]
COMMANDS = ("retone ", "--", "pip ")  # a remedy that begins so is something to type


@dataclass(frozen=True)
class DataReport:
    """What the data doctor says; plain JSON values. What is empty is left out."""

    title: str  # the recipe's name, or the file
    created: str  # ISO 8601
    verdict: str  # one sentence
    # {advice: prompt | little | retrieval | tune, says: one sentence, because: [sentence]}
    advice: Table
    # The ledger: as ReportData.ledger, and {ended: rows whose end token is trained}
    sources: Sequence[Table]
    # A histogram of the training rows: {edges: [whole tokens, one more than counts], counts:
    # [rows from an edge to below the next], max_length (or None), median, longest (tokens),
    # over: rows left out as too long}
    lengths: Table
    # {rows, trained, masked, cut (tokens of an epoch), ended_share (of the rows, 0 to 1),
    # padding_share (of the tokens of an epoch's batches, 0 to 1), steps_per_epoch}
    totals: Table
    findings: Sequence[Table]  # `Finding.as_json`, worst first
    # A few rows in pieces of (text, whether its tokens are trained)
    tokens: Sequence[Sequence[tuple[str, bool]]]


def render_data_page(data: DataReport) -> str:
    """The whole page as text; write it as UTF-8."""
    clean: DataReport = page.readable(data)
    verdict, _, rest = clean.verdict.partition("; ")
    return page.render(
        "data.html.jinja",
        title=clean.title,
        date=page.date(clean.created),
        verdict=verdict,
        under=f"{rest[:1].upper()}{rest[1:]}." if rest else "",
        section=section(clean.sources, clean),
    )


def section(ledger: Sequence[Table], data: DataReport | None) -> dict[str, Any]:
    """What the macro `data_section` shows of readable values; older runs have a ledger alone."""
    return {
        "sources": [_source(entry, place) for place, entry in enumerate(ledger)],
        "advice": data.advice if data else {},
        "facts": _facts(data.totals) if data else [],
        "lengths": _lengths(data.lengths) if data else {},
        "checked": data is not None,
        "findings": [_finding(found) for found in data.findings] if data else [],
        "tally": _tally(data.findings) if data else "",
        "tokens": data.tokens if data else [],
    }


def _facts(totals: Table) -> list[tuple[str, str]]:
    """Label and value of the totals that are known."""
    labels = (
        ("rows trained on", "rows", count),
        ("steps an epoch", "steps_per_epoch", count),
        ("trained tokens", "trained", count),
        ("masked tokens", "masked", count),
        ("cut tokens", "cut", count),
        ("rows with a trained end", "ended_share", _share),
        ("padding in the batches", "padding_share", _share),
    )
    known = [(label, number(totals.get(name)), form) for label, name, form in labels]
    return [(label, form(value)) for label, value, form in known if value is not None]


def _share(share: float) -> str:
    """Per cent to one decimal, rounded down: 100% is all."""
    return f"{math.floor(1000 * share + 1e-9) / 10:g}%"


def _lengths(lengths: Table) -> dict[str, Any]:
    """The histogram as a picture, in words and in rows of a table."""
    drawn = histogram.bars(lengths)
    if not drawn:
        return {}
    return {
        "figure": histogram.figure("lengths", lengths),
        "says": histogram.says(lengths),
        "rows": [(_between(low, high), count(rows)) for low, high, rows in drawn],
    }


def _between(low: int, high: int) -> str:
    """The whole numbers from `low` to below `high`."""
    return count(low) if high - low == 1 else f"{count(low)} to {count(high - 1)}"


def _finding(found: Table) -> dict[str, Any]:
    """A finding whose remedy is split into what is typed and what is said about it."""
    remedy = str(found["remedy"])
    command, comma, rest = remedy.partition(",") if remedy.startswith(COMMANDS) else ("", "", "")
    return {**found, "command": command, "remedy": comma + rest if command else remedy}


def _tally(findings: Sequence[Table]) -> str:
    """How many there are of each severity."""
    found = Counter(str(one["severity"]) for one in findings)
    numbers = [(found[severity], severity) for severity in SEVERITIES if found[severity]]
    return ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in numbers)


def _source(entry: Table, place: int) -> dict[str, Any]:
    """One data source: its tokens as a line, its dropped rows with reasons and examples."""
    tokens = entry.get("tokens") or {}
    total = sum(tokens.values()) or 1
    parts = [
        (
            name,
            tokens.get(name, 0),
            f"{count(tokens.get(name, 0))} ({tokens.get(name, 0) / total:.0%})",
        )
        for name in ("trained", "masked", "cut")
    ]
    examples = entry.get("examples") or {}
    return {
        **entry,
        "parts": parts,
        "line": plots.stacked_line(f"tokens-{place}", f"Tokens of {entry['path']}", parts),
        "dropped": [
            (reason, n, examples.get(reason, []))
            for reason, n in (entry.get("dropped") or {}).items()
        ],
    }
