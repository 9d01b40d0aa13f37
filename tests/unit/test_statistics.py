"""Intervals, tests and the verdict: planted wins, planted ties, hand-computed values, coverage."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retone.evaluation import statistics
from retone.evaluation.metrics import METRICS, RowScores, row_scores
from retone.evaluation.statistics import (
    Difference,
    adjust,
    difference,
    holm,
    resamples,
    rounded,
    score,
    spread,
)
from retone.evaluation.verdict import verdict

RNG = np.random.default_rng(7)
WORDS = ["we", "you", "they", "see", "like", "know", "dog", "cat", "house", "river", "now", "soon"]


def mean_rows(values: Any, name: str = "token_f1") -> RowScores:
    """Rows of a mean in percent."""
    return RowScores(METRICS[name], np.asarray(values, dtype=np.float64)[:, None] / 100)


def sentences(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 9)) for _ in range(n)]


def differ(tuned: list[str], rival: list[str], references: list[str], name: str) -> Difference:
    both = [row_scores(texts, references, only=[name])[name] for texts in (tuned, rival)]
    return difference(both[0], both[1])


# Intervals


def test_resamples_draw_every_row_as_often_as_there_are_rows() -> None:
    (weights,) = resamples(7, 50, seed=3)
    assert weights.shape == (50, 7)
    assert (weights.sum(1) == 7).all()
    assert next(resamples(7, 50, seed=3)) is weights
    assert not np.array_equal(weights, next(resamples(7, 50, seed=4)))
    with pytest.raises(ValueError, match="no rows"):
        next(resamples(0))


def test_many_rows_are_resampled_in_blocks_with_the_same_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole,) = resamples(40, 60)
    monkeypatch.setattr(statistics, "BLOCK_CELLS", 1000)
    blocks = list(resamples(40, 60))
    assert [len(block) for block in blocks] == [25, 25, 10]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_memory_of_intervals_is_bounded() -> None:
    rows = {n: mean_rows(RNG.normal(50, 10, n)) for n in (2_000, 60_000)}
    peaks = {}
    for n, found in rows.items():
        tracemalloc.start()
        assert score(found, 400).low is not None
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[60_000] < peaks[2_000] + 60e6  # all resamples at once: 380 MB


def test_a_normal_mean_has_students_interval() -> None:
    values = RNG.normal(50, 10, size=30)
    found = score(mean_rows(values), 40_000)
    half = 2.0452 * values.std(ddof=1) / math.sqrt(30)  # t(29), two-sided 95 %
    assert found.value == pytest.approx(values.mean())
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_wilson_by_hand() -> None:
    # 8 of 10: Wilson's 95 % interval is 49.0 to 94.3 %
    found = score(mean_rows([100.0] * 8 + [0.0] * 2, "exact"))
    assert found.low == pytest.approx(49.02, abs=0.01)
    assert found.high == pytest.approx(94.33, abs=0.01)
    perfect = score(mean_rows([100.0] * 30, "stop_rate"))
    assert (perfect.value, perfect.high) == (100, pytest.approx(100))
    assert perfect.low == pytest.approx(88.65, abs=0.01)


@pytest.mark.parametrize(
    ("values", "n", "reason"),
    [
        ([], 0, "no rows"),
        ([40.0], 1, "no interval from one row"),
        ([40.0] * 9, 9, "no interval: all rows score the same"),
    ],
)
def test_what_has_no_interval_says_why(values: list[float], n: int, reason: str) -> None:
    found = score(mean_rows(values))
    assert (found.low, found.high, found.n, found.reason) == (None, None, n, reason)
    assert str(found) == ("40.0" if n else "no score: no rows")


def test_diversity_has_a_value_and_no_interval() -> None:
    found = score(row_scores(["a b", "b c"], ["a b", "a c"])["distinct_1"])
    assert found.value == pytest.approx(0.75)
    assert found.low is None
    assert "diverse" in found.reason


def test_every_interval_of_real_rows_holds_its_score() -> None:
    references = sentences(40, 1)
    answers = [r if i % 3 else " ".join(r.split()[::-1]) for i, r in enumerate(references)]
    likely = [(float(n), 4, 20) for n in RNG.exponential(5, 40)]
    for name, rows in row_scores(answers, references, likelihoods=likely).items():
        found = score(rows)
        if rows.metric.resampled and not found.reason:
            assert found.low is not None
            assert found.high is not None
            assert found.value is not None
            assert found.low < found.value < found.high, name


@pytest.mark.parametrize("shape", ["normal", "skewed", "binary"])
def test_coverage_of_30_rows(shape: str) -> None:
    """A small copy of proof/test_coverage.py: 500 samples, so 95 % +- 2 at best."""
    rng = np.random.default_rng(11)
    held = {"score": 0, "difference": 0}
    for _ in range(500):
        if shape == "normal":
            one, other, truth = rng.normal(50, 10, 30), rng.normal(45, 10, 30), (50, 5)
        elif shape == "skewed":
            one, other, truth = 100 * rng.beta(1, 4, 30), 100 * rng.beta(4, 1, 30), (20, -60)
        else:
            one, other, truth = 100 * (rng.random((2, 30)) < [[0.7], [0.4]]), None, (70, 30)
            one, other = one
        name = "exact" if shape == "binary" else "token_f1"
        a, b = mean_rows(one, name), mean_rows(other, name)
        for kind, found, true in zip(held, (score(a), difference(a, b)), truth, strict=True):
            assert found.low is not None
            assert found.high is not None
            held[kind] += found.low <= true <= found.high
    for kind, count in held.items():
        assert 0.92 <= count / 500 <= 0.985, kind


# Differences


@settings(max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_nothing_differs_from_itself(values: list[float]) -> None:
    found = difference(mean_rows(values), mean_rows(values))
    assert (found.value, found.p, found.resolved) == (0, 1, False)
    right = mean_rows([100.0 * (v > 50) for v in values], "exact")
    binary = difference(right, right)
    assert (binary.value, binary.p, binary.resolved) == (0, 1, False)


# Eighths are added exactly: else means that tie with the score before may not do so after, and the
# bias correction counts those below it.
EIGHTHS = st.integers(0, 400).map(lambda number: number / 8)


@settings(max_examples=30)
@given(st.lists(EIGHTHS, min_size=8, max_size=20), st.integers(-160, 160).map(lambda n: n / 8))
def test_a_constant_shifts_score_and_difference(values: list[float], shift: float) -> None:
    rows, other = mean_rows(values), mean_rows(values[::-1])
    moved = mean_rows(np.asarray(values) + shift)
    before, after = score(rows), score(moved)
    for end in ("value", "low", "high"):
        old, new = getattr(before, end), getattr(after, end)
        if before.reason:
            assert before.reason == after.reason
        else:
            assert new == pytest.approx(old + shift, abs=1e-6)
    one, two = difference(rows, other), difference(moved, other)
    if one.low is not None and two.low is not None:
        assert two.low == pytest.approx(one.low + shift, abs=1e-6)


def test_the_order_of_rows_is_noise_only() -> None:
    a, b = RNG.normal(60, 20, 80), RNG.normal(50, 20, 80)
    order = RNG.permutation(80)
    one = difference(mean_rows(a), mean_rows(b))
    other = difference(mean_rows(a[order]), mean_rows(b[order]))
    assert one.value == pytest.approx(other.value)
    assert one.low == pytest.approx(other.low, abs=0.6)  # a tenth of the half width
    assert one.high == pytest.approx(other.high, abs=0.6)


def test_a_difference_turns_with_its_sides() -> None:
    a, b = mean_rows(RNG.normal(60, 20, 40)), mean_rows(RNG.normal(50, 20, 40))
    one, other = difference(a, b), difference(b, a)
    assert one.value == pytest.approx(-(other.value or 0))
    assert one.low == pytest.approx(-(other.high or 0))
    assert one.p == pytest.approx(other.p)


def test_bootstrap_p_is_close_to_the_t_test() -> None:
    """Normal differences, where Student's test is exact; from plain to far in the tail."""
    from scipy.stats import ttest_rel

    for gain in (0.0, 4.0, 8.0, 12.0, 30.0):
        a, b = RNG.normal(50 + gain, 10, 40), RNG.normal(50, 10, 40)
        found = difference(mean_rows(a), mean_rows(b), count=20_000)
        exact = float(ttest_rel(a, b).pvalue)
        assert found.p is not None
        assert found.p > 0
        assert math.log(found.p) == pytest.approx(math.log(exact), rel=0.25, abs=0.25)


def test_few_rows_resolve_nothing() -> None:
    found = difference(mean_rows([90, 91, 92, 93, 94]), mean_rows([10, 12, 11, 13, 15]))
    assert found.p == 2**-4  # five signs
    assert not found.resolved


def test_mcnemar_by_hand() -> None:
    # 9 rows only the candidate has right, 2 only the rival: 2 * P(X <= 2), X ~ B(11, 1/2)
    a = [100.0] * 9 + [0.0] * 2 + [100.0] * 9
    b = [0.0] * 9 + [100.0] * 2 + [100.0] * 9
    found = difference(mean_rows(a, "exact"), mean_rows(b, "exact"))
    assert found.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert found.value == pytest.approx(35)
    # Bonett & Price: (10 - 3) / 22 +- 1.96 sqrt((13/22 - (7/22)^2) / 22)
    half = 1.959964 * math.sqrt((13 / 22 - (7 / 22) ** 2) / 22)
    assert found.low == pytest.approx(100 * (7 / 22 - half))
    assert found.high == pytest.approx(100 * (7 / 22 + half))


def test_not_the_same_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the same"):
        difference(mean_rows([1, 2]), mean_rows([1, 2, 3]))
    with pytest.raises(ValueError, match="not the same"):
        difference(mean_rows([1, 2]), mean_rows([1, 2], "rougeL"))


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04: times 4 3 2 1 = .02 .03 .06 .04, and never falling: .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_family_asks_for_more() -> None:
    rows = mean_rows(RNG.normal(50, 10, 60)), mean_rows(RNG.normal(46, 10, 60))
    alone = replace(difference(*rows), p=0.03, p_adjusted=0.03, low=0.3, high=7.0)
    nothing = replace(alone, p=None, p_adjusted=None)
    assert alone.resolved
    first, missing, *_ = adjust([alone, nothing, replace(alone, p=0.5), replace(alone, p=0.9)])
    assert first.p_adjusted == pytest.approx(0.09)
    assert not first.resolved
    assert (missing.p_adjusted, missing.resolved) == (None, False)
    assert first.detectable is not None
    assert alone.detectable is not None
    assert first.detectable > alone.detectable


def test_smallest_difference_and_rows_needed() -> None:
    rng = np.random.default_rng(0)
    found = difference(mean_rows(rng.normal(51, 10, 100)), mean_rows(rng.normal(50, 10, 100)))
    assert found.se is not None
    assert found.detectable == pytest.approx(2.8016 * found.se, rel=1e-3)
    planted = replace(found, value=found.detectable / 2, p_adjusted=0.2)
    assert planted.more_rows == 300  # half the size takes four times the rows
    assert replace(planted, value=0.0).more_rows is None
    assert replace(planted, value=1e-3).more_rows is None  # more than anyone collects


# Seeds and rounding


def test_spread_over_seeds() -> None:
    found = spread([60.0, 62.0, 64.0])
    assert (found.mean, found.sd, found.n) == (62, 2, 3)
    assert found.high == pytest.approx(62 + 4.302653 * 2 / math.sqrt(3))
    assert str(found) == "62.0 ± 2.0 over 3 seeds"
    one = spread([60.0])
    assert (one.sd, one.low) == (None, None)
    assert "spread unknown" in str(one)
    with pytest.raises(ValueError, match="no seeds"):
        spread([])


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (24.123, 17.0, 31.2, "24.1"),
        (24.123, 2.0, 61.2, "24"),
        (0.98765, 0.98, 0.99, "0.9877"),
        (24.123, None, None, "24.1"),
        (-0.01, -7.0, 7.0, "0.0"),
        (5.0, 5.0, 5.0, "5.000"),
        (0.98765, None, None, "0.988"),
    ],
)
def test_rounding(value: float, low: float | None, high: float | None, text: str) -> None:
    assert rounded(value, low, high) == text


# The verdict


def test_a_planted_win_is_resolved() -> None:
    references = sentences(60, 2)
    copied = [" ".join(r.split()[4:] + r.split()[:4]) for r in references]
    tuned = [r if i % 4 else c for i, (r, c) in enumerate(zip(references, copied, strict=True))]
    found = differ(tuned, copied, references, "bleu")
    assert found.resolved
    text = verdict([found])
    assert text.startswith("tuned beats copying by +")
    assert text.endswith("n=60)")
    assert " BLEU (95 % CI " in text
    back = differ(copied, tuned, references, "bleu")
    assert verdict([back]).startswith("tuned loses to copying by -")


def test_lower_is_better_is_said() -> None:
    references = sentences(60, 2)
    copied = [" ".join(r.split()[4:] + r.split()[:4]) for r in references]
    text = verdict([differ(references, copied, references, "ter")])
    assert text.startswith("tuned beats copying by -")
    assert "TER, where lower is better (95 % CI -" in text


def test_a_planted_tie_is_not_resolved() -> None:
    a, b = RNG.normal(50, 20, 60), RNG.normal(50, 20, 60)
    found = difference(mean_rows(a - a.mean() + 51), mean_rows(b - b.mean() + 50))
    text = verdict([found])
    assert text.startswith(
        "not resolved: tuned against copying is +1.0 points of token F1 (95 % CI -"
    )
    assert "these rows resolve about" in text
    assert text.endswith("more rows")


def test_the_strongest_rival_counts() -> None:
    noise = RNG.normal(0, 5, 60)
    tuned = mean_rows(70 + RNG.normal(0, 5, 60))
    rivals = {"base": 20 + noise, "prompted": 50 + noise, "copy": 30 + noise}
    found = [difference(tuned, mean_rows(v), ("tuned", k)) for k, v in rivals.items()]
    assert verdict(adjust(found)).startswith("tuned beats prompting by +")


@pytest.mark.parametrize(
    ("tuned", "rival", "references", "words"),
    [
        ([], [], [], "no verdict: tuned has no BLEU: no rows"),
        (["a b"], ["a c"], ["a b"], "in BLEU: one row shows no spread"),
        (["a b", "c"], ["a b", "c"], ["a", "c"], "copying in BLEU: the same on each of 2 rows"),
        (["", ""], ["a b", "c"], ["a", "c"], "tuned has no BLEU: all 2 answers are empty"),
        (["a", "b"], ["", ""], ["a", "c"], "copy has no BLEU: all 2 answers are empty"),
    ],
)
def test_no_verdict_in_words(
    tuned: list[str], rival: list[str], references: list[str], words: str
) -> None:
    text = verdict([differ(tuned, rival, references, "bleu")])
    assert words in text
    assert "0.0" not in text
    assert "nan" not in text.lower()


def test_no_verdict_without_rivals_or_direction() -> None:
    assert verdict([]) == "no verdict: nobody to compare with"
    longer = differ(["a b c", "b"], ["a b", "b"], ["a b", "c"], "length_ratio")
    assert verdict([longer]) == "no verdict: length ratio has no better end"


def test_json_is_plain() -> None:
    import json

    references = sentences(12, 5)
    found = differ(references, sentences(12, 6), references, "chrf").as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["resolved"] is True
    assert statistics.RESAMPLES == 2000
