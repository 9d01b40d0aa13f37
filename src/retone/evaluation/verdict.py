"""The verdict: one sentence on one candidate against the strongest of its rivals."""

from __future__ import annotations

from collections.abc import Sequence

from retone.evaluation.statistics import Difference, interval_text, rounded

# Candidates in a sentence: "tuned beats ...".
SPOKEN = {
    "copy": "copying",
    "base": "the base model",
    "prompted": "prompting",
    "few_shot": "few-shot prompting",
    "retrieval": "retrieval",
}


def verdict(differences: Sequence[Difference]) -> str:
    """One sentence: one candidate, under one metric, against the strongest of its rivals."""
    # A rival without a score is no rival; a candidate without one has no verdict.
    gains = [(d.gain, d) for d in differences if d.gain is not None]
    if not gains:
        missing = [d.reason or f"{d.metric.label} has no better end" for d in differences]
        return f"no verdict: {missing[0] if missing else 'nobody to compare with'}"
    gain, found = min(gains, key=lambda pair: pair[0])
    who, rival = found.candidate, SPOKEN.get(found.rival, found.rival)
    if found.p is None or found.value is None or found.reason:
        return f"not resolved: {who} against {rival} in {found.metric.label}: {found.reason}"
    unit = "" if found.metric.label[0].isupper() or found.metric.bounds[1] != 100 else "points of "
    value = rounded(found.value, found.low, found.high, signed=True)
    measured = f"{value} {unit}{found.metric.label}"
    if found.metric.higher_is_better is False:
        measured += ", where lower is better"
    if found.low is not None and found.high is not None:
        measured += f" (95 % CI {interval_text(found.low, found.high)}, n={found.n})"
    if not found.resolved:
        return f"not resolved: {who} against {rival} is {measured}{_outlook(found)}"
    return f"{who} {'beats' if gain > 0 else 'loses to'} {rival} by {measured}"


def _outlook(found: Difference) -> str:
    """What these rows can resolve, and what it would take."""
    if not found.detectable:
        return ""
    smallest = rounded(found.detectable, found.low, found.high)
    text = f"; these rows resolve about {smallest} or more"
    if found.more_rows is not None:
        text += f", a difference of this size takes about {found.more_rows:,} more rows"
    return text
