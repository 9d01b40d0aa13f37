"""How often a 95 % interval holds the truth: the product's own intervals on planted populations.

A cell is a population, a number of rows and 2,000 samples, each through `score` and `difference` as
a user's rows would be. 93 to 97 % is asked for; the standard error of a cell is 0.5 %. Corpus
metrics draw rows from real pairs, where the truth is the score of the whole pool. Populations
marked as known limits are measured and reported, not asserted.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom

from record import record
from retone.evaluation.metrics import METRICS, RowScores, row_scores
from retone.evaluation.statistics import difference, resamples, score

SAMPLES = 2000
ROWS = (30, 60, 200)
POOL = Path(__file__).resolve().parents[2] / "shared/data/style/yoda_sentences.csv"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Pairs of row values in percent, and what is true of them."""

    name: str
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]]
    truth: tuple[float, float]  # of the first candidate, of the difference
    binary: bool = False
    asked: bool = True  # False: a known limit


def normal(gain: float) -> Population:
    """Rows share a difficulty, so that candidates are correlated (0.5)."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        shared = rng.normal(50, 10, n)
        return shared + rng.normal(gain, 10, n), shared + rng.normal(0, 10, n)

    return Population(f"normal, gain {gain:g}", draw, (50 + gain, gain))


def exponential(share: float) -> Population:
    """Skewness 2; the rival's mean is `share` of the candidate's."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        return 20 * rng.exponential(size=n), 20 * share * rng.exponential(size=n)

    return Population(f"exponential, rival at {share:g}", draw, (20, 20 * (1 - share)))


def beta(first: tuple[float, float], second: tuple[float, float]) -> Population:
    """Shares that lean on a bound, as token F1 and ROUGE do."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        return 100 * rng.beta(*first, n), 100 * rng.beta(*second, n)

    means = [100 * a / (a + b) for a, b in (first, second)]
    name = "Beta({:g}, {:g}) against Beta({:g}, {:g})".format(*first, *second)
    return Population(name, draw, (means[0], means[0] - means[1]))


def heavy() -> Population:
    """Lognormal, skewness 3.7: a few rows carry the mean."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        return 10 * rng.lognormal(0, 0.8, n), 5 * rng.lognormal(0, 0.8, n)

    mean = 10 * float(np.exp(0.32))
    return Population("lognormal", draw, (mean, mean / 2), asked=False)


def ties(share: float, *, asked: bool = True) -> Population:
    """`share` of the rows are answered alike; the others differ by N(6, 20)."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        rival = rng.normal(50, 10, n)
        return rival + np.where(rng.random(n) < share, 0, rng.normal(6, 20, n)), rival

    gain = 6 * (1 - share)
    return Population(f"{share:.0%} ties", draw, (50 + gain, gain), asked=asked)


def binary(first: float, second: float, *, asked: bool = True) -> Population:
    """Right or wrong, with half of the rows equally easy for both."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        luck, own = rng.random(n), rng.random(n)
        other = np.where(rng.random(n) < 0.5, luck, own)
        return 100.0 * (luck < first), 100.0 * (other < second)

    truth = (100 * first, 100 * (first - second))
    return Population(f"binary {first:g} against {second:g}", draw, truth, True, asked)


POPULATIONS = (
    normal(0),
    normal(5),
    exponential(1),
    exponential(0.5),
    beta((2, 5), (1, 4)),
    beta((8, 1), (2, 2)),
    beta((0.5, 0.5), (0.3, 2)),
    beta((0.3, 2), (8, 1)),
    ties(0.5),
    binary(0.5, 0.5),
    binary(0.7, 0.4),
    binary(0.3, 0.3),
    binary(0.9, 0.6),
    binary(0.1, 0.05, asked=False),
    binary(0.98, 0.95, asked=False),
    ties(0.8, asked=False),
    heavy(),
)


def measure(
    samples: Iterator[tuple[RowScores, ...]], truth: tuple[float, float]
) -> dict[str, float]:
    """Shares of the samples: intervals that hold the truth, that miss it low or high, p < 5 %."""
    names = ("score", "score_too_low", "score_too_high", "difference", "p_below_5")
    counts: dict[str, int] = dict.fromkeys(names, 0)
    total = 0
    for first, second in samples:
        total += 1
        single, paired = score(first), difference(first, second)
        if single.low is not None and single.high is not None:
            counts["score_too_low"] += single.high < truth[0]
            counts["score_too_high"] += single.low > truth[0]
            counts["score"] += single.low <= truth[0] <= single.high
        if paired.low is not None and paired.high is not None:
            counts["difference"] += paired.low <= truth[1] <= paired.high
        counts["p_below_5"] += paired.p is not None and paired.p < 0.05
        for name, (low, high) in not_chosen(first, second).items():
            true = truth["difference" in name]
            counts[name] = counts.get(name, 0) + (low <= true <= high)
    return {name: round(count / total, 4) for name, count in counts.items()}


def not_chosen(first: RowScores, second: RowScores) -> dict[str, tuple[float, float]]:
    """Intervals that were tried for means and are not used."""
    if first.metric.binary or first.statistics.shape[1] > 1:
        return {}
    (weights,) = resamples(first.n)
    means = weights @ first.statistics[:, 0] * 100 / first.n
    low, high = np.quantile(means, [0.025, 0.975])
    bca = score(RowScores(first.metric, first.statistics - second.statistics))
    found = {"score_plain_percentile": (float(low), float(high))}
    if bca.low is not None and bca.high is not None:
        found["difference_bca"] = (bca.low, bca.high)
    return found


def wilson_cells() -> list[dict[str, float]]:
    """Exact coverage of a share's interval, over true shares of 5 to 95 %."""
    cells = []
    for n in ROWS:
        counted = np.arange(n + 1)
        rows = [np.repeat([1.0, 0.0], [k, n - k])[:, None] for k in counted]
        found = [score(RowScores(METRICS["exact"], row)) for row in rows]
        low = np.array([f.low for f in found], dtype=float) / 100
        high = np.array([f.high for f in found], dtype=float) / 100
        held = np.array(
            [
                binom.pmf(counted, n, p)[(low <= p) & (p <= high)].sum()
                for p in np.linspace(0.05, 0.95, 901)
            ]
        )
        inside = float(np.mean((held >= 0.93) & (held <= 0.97)))
        shares = {"mean": held.mean(), "least": held.min(), "most": held.max()}
        cells.append(
            {"rows": n, **{k: round(float(v), 4) for k, v in shares.items()}, "inside": inside}
        )
    return cells


@pytest.mark.skipif(not POOL.exists(), reason=f"the pairs are not here: {POOL}")
def test_coverage() -> None:
    cells: list[dict[str, Any]] = []
    for population in POPULATIONS:
        metric = METRICS["exact" if population.binary else "token_f1"]
        for n in ROWS:
            rng = np.random.default_rng(n)
            drawn = (population.draw(rng, n) for _ in range(SAMPLES))
            samples = (tuple(RowScores(metric, v[:, None] / 100) for v in pair) for pair in drawn)
            found = measure(samples, population.truth)
            facts = {"population": population.name, "rows": n, "asked": population.asked}
            cells.append({**facts, "binary": population.binary, **found})
    corpus = corpus_cells()
    wilson = wilson_cells()
    record(
        "coverage",
        {
            "samples": SAMPLES,
            "asked_for": [0.93, 0.97],
            "means": cells,
            "shares_exact": wilson,
            "corpus": corpus,
        },
    )
    outside = [
        (cell["population"], cell["rows"], kind, cell[kind])
        for cell in cells
        if cell["asked"]
        for kind in ("score", "difference")
        # A single true share of a count may lie outside; the shares together may not.
        if not (cell["binary"] and kind == "score")
        if not 0.93 <= cell[kind] <= 0.97
    ]
    outside += [
        ("corpus", cell["metric"], cell["rows"])
        for cell in corpus
        if not min(cell["score"], cell["difference"]) >= 0.93
    ]
    assert outside == []
    assert all(0.945 <= cell["mean"] <= 0.955 and cell["inside"] >= 0.9 for cell in wilson)
    # Where nothing differs, about 5 % of the tests may say otherwise.
    alarms = [c["p_below_5"] for c in cells if c["population"] == "normal, gain 0"]
    assert max(alarms) <= 0.065


# Corpus metrics


def fast_bleu(sums: Array, _: int) -> Array:
    """sacreBLEU's default BLEU for many samples at once (checked against it below)."""
    said, wanted, hits, of = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    halvings = 2.0 ** np.cumsum(hits == 0, axis=1)
    precision = np.where(hits > 0, hits, 1 / halvings) / of
    brevity = np.where(said < wanted, np.exp(1 - wanted / said), 1.0)
    return 100 * brevity * np.exp(np.log(precision).mean(1))


def fast_chrf(sums: Array, _: int) -> Array:
    """sacreBLEU's default chrF for many samples at once."""
    said, wanted, hits = (sums[:, place::3] for place in range(3))
    precision, recall = (hits / said).mean(1), (hits / wanted).mean(1)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def fast_ter(sums: Array, _: int) -> Array:
    return 100 * sums[:, 0] / sums[:, 1]


def corpus_cells() -> list[dict[str, Any]]:
    """Rows drawn from real pairs: copying, against a rival that has a third of the rows right."""
    with POOL.open(newline="") as file:
        pairs = [(row["sentence"], row["translation"]) for row in csv.DictReader(file)]
    references = [right for _, right in pairs]
    copied = [plain for plain, _ in pairs]
    mixed = [pair[index % 3 == 0] for index, pair in enumerate(pairs)]
    cells = []
    for name, fast in (("bleu", fast_bleu), ("chrf", fast_chrf), ("ter", fast_ter)):
        pools = [row_scores(a, references, only=[name])[name] for a in (mixed, copied)]
        check = np.stack([pool.statistics[:40].sum(0) for pool in pools])
        slow = pools[0].metric.reduce(check, 40)
        np.testing.assert_allclose(fast(check, 40), slow, rtol=1e-12)
        values = [pool.value for pool in pools if pool.value is not None]
        metric = replace(pools[0].metric, reduce=fast)
        for n in ROWS:
            rng = np.random.default_rng(n)
            drawn = (rng.integers(0, len(pairs), n) for _ in range(SAMPLES))
            samples = (tuple(RowScores(metric, p.statistics[d]) for p in pools) for d in drawn)
            found = measure(samples, (values[0], values[0] - values[1]))
            cells.append({"metric": name, "pool": len(pairs), "rows": n, **found})
    return cells
