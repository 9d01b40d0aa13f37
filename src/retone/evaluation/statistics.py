"""What the rows show: scores with intervals, and paired differences.

Rows are resampled with replacement (Efron & Tibshirani 1993; for BLEU, Koehn 2004, EMNLP); all
candidates share the resamples, so a difference is paired. A plain percentile interval of 30 rows
covers 92-93 % instead of 95 %, for two reasons with two remedies, chosen by simulation
(`proof/test_coverage.py`, where 93-97 % is asked for):

- It is too narrow by the factor that Student's t has over the normal: the tail is taken at
  Phi(-t(n-1) sqrt(n / (n-1))) (Hesterberg 2015, Am. Stat. 69:371, "expanded percentile").
- Scores lean against their bounds: BCa (Efron 1987, JASA 82:171) shifts the ends by the median
  bias and the skewness of the rows. Used for scores, where it lifts skewed rows into the range.
  Not for differences: those are near symmetric with many zeros, where BCa's skewness, estimated
  from few rows, costs coverage (92.8 against 94.5 % when half of 30 rows are ties).

Known limit: where few rows carry everything (80 % ties in 30 rows) a difference covers 91 %.
Right-or-wrong metrics have closed forms that are no narrower at 0 and 100 %: Wilson (1927, JASA
22:209) for a score, Bonett & Price (2012, J. Educ. Behav. Stat. 37:479) for a paired difference.

Where something cannot be said, the number is None and `reason` says why: never 0.0, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from retone.evaluation.metrics import Array, Metric, RowScores

RESAMPLES = 2000
BLOCK_CELLS = 2_000_000  # counts in one block: 16 MB
LEVEL = 0.05  # of tests; intervals are 1 - LEVEL
POWER = 0.8


@dataclass(frozen=True)
class Score:
    """A score and its 95 % interval, in the metric's unit.

    Attributes:
        value: None where there is no score.
        low, high: ends of the interval; None where there is none.
        n: rows that count.
        reason: why there is no score or no interval; empty where there are both.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"no score: {self.reason}"
        if self.low is None or self.high is None:
            return rounded(self.value)
        return f"{rounded(self.value, self.low, self.high)} ({interval_text(self.low, self.high)})"


@dataclass(frozen=True)
class Difference:
    """Candidate minus rival on the same rows, in the metric's unit.

    Attributes:
        candidate: its name.
        rival: what it is compared with.
        metric: what is compared.
        value: None where one of the two has no score.
        low, high: ends of the 95 % interval; None where there is none.
        p: two-sided, of no difference: bootstrap, or McNemar's exact test (1947, Psychometrika
            12:153) for right-or-wrong metrics; None where there is no test.
        n: rows.
        se: standard error.
        p_adjusted: p after Holm over the differences it was read with (`adjust`); p before that.
        family: how many those are.
        reason: why there is no value or no test.
    """

    candidate: str
    rival: str
    metric: Metric
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    se: float | None = None
    p_adjusted: float | None = None
    family: int = 1
    reason: str = ""

    @property
    def gain(self) -> float | None:
        """`value`, signed so that more is better; None where the metric has no better end."""
        if self.value is None or self.metric.higher_is_better is None:
            return None
        return self.value if self.metric.higher_is_better else -self.value

    @property
    def resolved(self) -> bool:
        """Adjusted p below 5 %, and an interval without 0."""
        if self.p_adjusted is None or self.low is None or self.high is None:
            return False
        return self.p_adjusted < LEVEL and not self.low <= 0 <= self.high

    @property
    def detectable(self) -> float | None:
        """Smallest difference that these rows find with 80 % power.

        2.8 standard errors for one comparison (1.96 + 0.84: Gelman & Hill 2007, ch. 20; for NLP,
        Card et al. 2020, arXiv:2010.06595), more where a family shares the 5 %.
        """
        if not self.se:
            return None
        return self.se * float(-ndtri(LEVEL / (2 * self.family)) + ndtri(POWER))

    @property
    def more_rows(self) -> int | None:
        """About how many further rows would find a difference of this size, two digits."""
        if self.resolved or not self.value or not self.detectable:
            return None
        more = self.n * ((self.detectable / self.value) ** 2 - 1)
        if not more < 100_000:
            return None  # nobody collects these
        step: int = 10 ** max(0, math.floor(math.log10(max(more, 1))) - 1)
        return max(1, math.ceil(more / step) * step)

    def as_json(self) -> dict[str, Any]:
        """Plain values: value, low, high, p, p_adjusted, n, resolved, detectable and more."""
        names = ("value", "low", "high", "p", "p_adjusted", "n", "resolved", "detectable")
        return {name: getattr(self, name) for name in (*names, "more_rows", "reason")}


@dataclass(frozen=True)
class Spread:
    """A score over training seeds.

    Attributes:
        mean: over seeds.
        sd: standard deviation (n - 1); None for one seed.
        low, high: ends of the 95 % t-interval of the mean; None for one seed.
        n: seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        mean = rounded(self.mean, self.low, self.high)
        if self.sd is None:
            return f"{mean} (one seed: spread unknown)"
        return f"{mean} ± {rounded(self.sd, self.low, self.high)} over {self.n} seeds"


def resamples(n: int, count: int = RESAMPLES, seed: int = 0) -> Iterator[Array]:
    """How often each of `n` rows is drawn, in blocks of resamples: [block, n], sums of `n`.

    Always the same draws; many rows come in several blocks, so that memory stays bounded. Raises
    ValueError for no rows.
    """
    if n < 1:
        raise ValueError("no rows to resample")
    block = max(1, BLOCK_CELLS // n)
    if block >= count:
        yield _resamples(n, count, seed)
        return
    draw = np.random.default_rng(seed)
    for start in range(0, count, block):
        yield _drawn(draw, n, min(block, count - start))


@lru_cache(maxsize=2)
def _resamples(n: int, count: int, seed: int) -> Array:
    """All in one block, kept for the next metric of the same rows."""
    return _drawn(np.random.default_rng(seed), n, count)


def _drawn(draw: np.random.Generator, n: int, count: int) -> Array:
    weights = draw.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
    weights.flags.writeable = False
    return weights


def score(rows: RowScores, count: int = RESAMPLES) -> Score:
    """The score with its 95 % interval from `count` resamples."""
    value, n = rows.value, rows.n
    if value is None:
        return Score(None, None, None, n, rows.reason)
    if rows.metric.binary:
        return Score(value, *_wilson(value / 100, n), n)
    if not rows.metric.resampled:
        return Score(value, None, None, n, "no interval: resampled rows always look less diverse")
    if n < 2:
        return Score(value, None, None, n, "no interval from one row")
    resampled = _resample(rows, count)
    if _flat(resampled):
        return Score(value, None, None, n, "no interval: all rows score the same")
    edge = 1 / (2 * len(resampled))
    bias = float(ndtri(np.clip(_below(resampled, value), edge, 1 - edge)))
    skew = _acceleration(rows)
    shifted = bias + np.array([-_expanded(n), _expanded(n)])
    tails = ndtr(bias + shifted / np.maximum(1 - skew * shifted, 1e-3))
    low, high = np.quantile(resampled, tails)
    return Score(value, float(low), float(high), n)


def difference(
    candidate: RowScores,
    rival: RowScores,
    names: tuple[str, str] = ("tuned", "copy"),
    count: int = RESAMPLES,
) -> Difference:
    """Candidate minus rival on the same rows, with interval and p.

    Raises ValueError when the two are not the same metric on as many rows.
    """
    metric, n = candidate.metric, candidate.n
    if metric.name != rival.metric.name or n != rival.n:
        raise ValueError(f"not the same: {metric.name} of {n}, {rival.metric.name} of {rival.n}")
    empty = Difference(*names, metric, None, None, None, None, n)
    for name, rows in zip(names, (candidate, rival), strict=True):
        if rows.value is None:
            return replace(empty, reason=f"{name} has no {metric.label}: {rows.reason}")
    values = [rows.value for rows in (candidate, rival) if rows.value is not None]
    value = values[0] - values[1]
    if not metric.resampled:
        return replace(empty, value=value, reason=f"{metric.label} has no interval")
    if metric.binary:
        low, high, p, se = _paired_binary(candidate.statistics[:, 0], rival.statistics[:, 0])
        return replace(empty, value=value, low=low, high=high, p=p, p_adjusted=p, se=se)
    if n < 2:
        return replace(empty, value=value, reason="one row shows no spread")
    if np.array_equal(candidate.statistics, rival.statistics):
        reason = f"the same on each of {n} rows"
        return replace(empty, value=value, p=1.0, p_adjusted=1.0, se=0.0, reason=reason)
    resampled = _resample(candidate, count) - _resample(rival, count)
    low, high = np.quantile(resampled, [ndtr(-_expanded(n)), ndtr(_expanded(n))])
    se = 0.0 if _flat(resampled) else float(resampled.std() * math.sqrt(n / (n - 1)))
    p = _bootstrap_p(resampled, value, n)
    return replace(empty, value=value, low=float(low), high=float(high), p=p, p_adjusted=p, se=se)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being read together (Holm 1979, Scand. J. Stat. 6:65), same order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """The differences of one table, with Holm's p over all that have a test."""
    tested = [d.p for d in differences if d.p is not None]
    adjusted = iter(holm(tested))
    return [
        d if d.p is None else replace(d, p_adjusted=next(adjusted), family=len(tested))
        for d in differences
    ]


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % t-interval over seeds; ValueError for none."""
    if not values:
        raise ValueError("no seeds, no spread")
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Spread(mean, None, None, None, n)
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half, n)


def decimals(low: float | None, high: float | None, default: int) -> int:
    """Decimals that an interval supports: two significant digits of its half width, at most 4."""
    if low is None or high is None or not high > low:
        return default
    return min(4, max(0, 1 - math.floor(math.log10((high - low) / 2))))


def rounded(
    value: float, low: float | None = None, high: float | None = None, *, signed: bool = False
) -> str:
    """`value` with the decimals its interval supports; without one, 1 from 10 up, else 3."""
    places = decimals(low, high, 1 if abs(value) >= 10 else 3)
    text = f"{value:{'+' if signed else ''}.{places}f}"
    return text if float(text) else text.lstrip("+-")


def interval_text(low: float, high: float) -> str:
    """Both ends with the decimals that their distance supports."""
    return f"{rounded(low, low, high)} to {rounded(high, low, high)}"


def _expanded(n: int) -> float:
    """Normal quantile at which the percentile interval of `n` rows has Student's width."""
    return float(stdtrit(n - 1, 1 - LEVEL / 2)) * math.sqrt(n / (n - 1))


def _resample(rows: RowScores, count: int) -> Array:
    """Scores of the resamples; one whose rows count nothing has the score of the sample."""
    sums = [weights @ rows.statistics for weights in resamples(rows.n, count)]
    scores = rows.metric.reduce(np.concatenate(sums), rows.n)
    scores[~np.isfinite(scores)] = rows.value
    return scores


def _below(values: Array, point: float) -> float:
    """Share of the values below `point`; ties, but for rounding, count half."""
    noise = 1e-9 * max(1.0, abs(point))
    return float(np.mean(values < point - noise) + np.mean(values <= point + noise)) / 2


def _flat(values: Array) -> bool:
    return float(np.ptp(values)) <= 1e-9 * max(1.0, float(np.abs(values).max()))


def _acceleration(rows: RowScores) -> float:
    """BCa's skewness term, from the scores without each row (jackknife)."""
    left_out = rows.metric.reduce(rows.statistics.sum(0) - rows.statistics, rows.n - 1)
    pull = left_out[np.isfinite(left_out)]
    pull = pull.mean() - pull
    square = float((pull**2).sum())
    return float((pull**3).sum()) / (6 * square**1.5) if square > 1e-18 else 0.0


def _bootstrap_p(resampled: Array, value: float, n: int) -> float:
    """Two-sided p: the level at which the expanded percentile interval just touches 0.

    Where no resample crosses 0 the tail is Student's, from the standard error: 2,000 resamples say
    no more than "below 0.001". Never below 2^(1-n), the least that n signs can show.
    """
    crossed = _below(resampled, 0.0)
    crossed = min(crossed, 1 - crossed)
    deviation = 0.0 if _flat(resampled) else float(resampled.std())
    if crossed > 1 / len(resampled):
        z = -float(ndtri(crossed))
    else:
        least = -float(ndtri(1 / len(resampled)))
        z = max(least, abs(value) / deviation) if deviation else math.inf
    p = 2 * float(stdtr(n - 1, -z * math.sqrt((n - 1) / n)))
    return min(1.0, max(p, 2.0 ** (1 - n)))


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Interval of a share, in percent."""
    z = float(-ndtri(LEVEL / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def _paired_binary(candidate: Array, rival: Array) -> tuple[float, float, float, float]:
    """Ends in percent, McNemar's exact p, and the standard error in percent."""
    from scipy.stats import binomtest  # loads for most of a second

    n = len(candidate)
    won, lost = int(np.sum(candidate > rival)), int(np.sum(candidate < rival))
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    se = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    half = float(-ndtri(LEVEL / 2)) * se
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return 100 * low, 100 * high, p, 100 * se
