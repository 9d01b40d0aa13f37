"""What is measured on answers, as statistics per row, so that rows can be resampled.

Every metric is a matrix of per-row statistics and a function from their column sums to the score.
A mean has one column; corpus BLEU has ten (lengths and n-gram counts). A bootstrap resample is then
a weighted sum of rows, a matrix product, and never a second look at the text
(`retone.evaluation.statistics`).

The arithmetic of BLEU, chrF and TER is sacreBLEU's (Post 2018, arXiv:1804.08771), fed with its own
per-segment statistics as its significance tests do; ROUGE is google-research's rouge-score.

No rows, no score: what cannot be computed is `missing`, a reason in words, and never a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics import BLEU, CHRF, TER

from retone.evaluation.matching import (
    equal_fields,
    exact_match,
    has_keyword,
    json_object,
    token_f1,
)

Array = npt.NDArray[np.float64]
Reference = str | Sequence[str] | None  # one text, several that are equally right, or none
Likelihood = tuple[float, int, int]  # nats, tokens, bytes of a row's reference answer

# TER's shift search takes seconds beyond this (geometric mean of both lengths, in words).
TER_WORDS = 60


@dataclass(frozen=True)
class Metric:
    """What is computed, and how it is read.

    Attributes:
        name: the key in tables and JSON.
        label: the name in a sentence.
        higher_is_better: None where neither direction is (a length ratio).
        bounds: smallest and largest possible value.
        signature: what exactly was computed, enough to repeat it.
        reduce: column sums [m, k] of m samples and the rows in each -> scores [m], NaN where
            the score does not exist.
        binary: a row is right or wrong (0 or 1).
        resampled: False where resampled rows have no meaning, and so there is no interval.
    """

    name: str
    label: str
    higher_is_better: bool | None
    bounds: tuple[float, float]
    signature: str
    reduce: Callable[[Array, int], Array]
    binary: bool = False
    resampled: bool = True


@dataclass(frozen=True)
class RowScores:
    """The rows of one candidate under one metric.

    Attributes:
        metric: what they are statistics of.
        statistics: per row, [rows, k].
        missing: why there is no score, empty where there is one.
    """

    metric: Metric
    statistics: Array
    missing: str = ""

    @property
    def n(self) -> int:
        """Rows that count under this metric."""
        return len(self.statistics)

    @property
    def value(self) -> float | None:
        """The score of all rows; None, with `reason`, where there is none."""
        if self.missing or not self.n:
            return None
        value = float(self.metric.reduce(self.statistics.sum(0, keepdims=True), self.n)[0])
        return None if math.isnan(value) else value

    @property
    def reason(self) -> str:
        """Why `value` is None; empty where it is a number."""
        if self.value is not None:
            return ""
        return self.missing or ("nothing to count in these rows" if self.n else "no rows")


def _mean(sums: Array, rows: int, *, scale: float = 100.0) -> Array:
    means: Array = scale * sums[:, 0] / rows
    return means


def _ratio(sums: Array, _: int) -> Array:
    """First column by the second, NaN where the second is 0."""
    ratios: Array = np.full(len(sums), np.nan)
    np.divide(sums[:, 0], sums[:, 1], out=ratios, where=sums[:, 1] > 0)
    return ratios


def _perplexity(sums: Array, rows: int) -> Array:
    with np.errstate(over="ignore"):
        perplexities: Array = np.exp(_ratio(sums, rows))
    return perplexities


def _sacre(scorer: Any, sums: Array, _: int) -> Array:
    return np.array([scorer._compute_score_from_stats(row.tolist()).score for row in sums])


def _sacre_metric(name: str, label: str, scorer: Any, higher: bool, top: float) -> Metric:
    scorer.num_refs = 1
    signature = str(scorer.get_signature())
    return Metric(name, label, higher, (0.0, top), signature, partial(_sacre, scorer))


_SCORERS: dict[str, Any] = {"bleu": BLEU(force=True), "chrf": CHRF(), "ter": TER()}
_INF = math.inf
_SQUAD = "norm:lower,punctuation,articles"
_PERCENT = (0.0, 100.0)
_ROUGE_VERSION = version("rouge-score")
_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}

# Percent throughout, but for ratios (length_ratio, distinct), perplexity and bits.
# fmt: off
METRICS: dict[str, Metric] = {metric.name: metric for metric in (
    # Papineni et al. 2002 (ACL); Popovic 2015 (WMT); Snover et al. 2006 (AMTA)
    _sacre_metric("bleu", "BLEU", _SCORERS["bleu"], True, 100.0),
    _sacre_metric("chrf", "chrF", _SCORERS["chrf"], True, 100.0),
    _sacre_metric("ter", "TER", _SCORERS["ter"], False, _INF),
    # Lin 2004 (ACL workshop); F1 of a row, averaged over rows
    *(Metric(name, label, True, _PERCENT,
             f"{name}:F1|tok:[a-z0-9]+|stem:no|mean of rows|version:{_ROUGE_VERSION}", _mean)
      for name, label in _ROUGE.items()),
    # Rajpurkar et al. 2016, arXiv:1606.05250, and their scripts; the best of several references
    Metric("exact", "exact match", True, _PERCENT, _SQUAD, _mean, binary=True),
    Metric("token_f1", "token F1", True, _PERCENT, f"{_SQUAD}|mean of rows", _mean),
    Metric("keyword_recall", "keyword recall", True, _PERCENT,
           "whole words|case:no|mean over rows with keywords", _mean),
    Metric("json_valid", "valid JSON", True, _PERCENT, "the whole answer is one JSON object",
           _mean, binary=True),
    Metric("json_fields", "right fields", True, _PERCENT,
           "equal top-level fields / fields of either side|mean of rows", _mean),
    Metric("perplexity", "perplexity", False, (1.0, _INF), "exp(nats/token)", _perplexity),
    Metric("bits_per_byte", "bits per byte", False, (0.0, _INF), "bits/byte of UTF-8", _ratio),
    Metric("length_ratio", "length ratio", None, (0.0, _INF),
           "words of answers / words of (first) references", _ratio),
    # Li et al. 2016, arXiv:1510.03055: distinct n-grams by all words. A resample repeats rows and
    # so always looks less diverse than the sample it is drawn from: no interval.
    *(Metric(f"distinct_{n}", f"distinct-{n}", True, (0.0, 1.0),
             f"distinct {n}-grams / words|case:no", _ratio, resampled=False)
      for n in (1, 2)),
    Metric("stop_rate", "stop rate", True, _PERCENT, "end token within max_new_tokens",
           _mean, binary=True),
)}
# fmt: on


def row_scores(
    answers: Sequence[str],
    references: Sequence[Reference],
    *,
    keywords: Sequence[Collection[str]] | None = None,
    stopped: Sequence[bool] | None = None,
    likelihoods: Sequence[Likelihood] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, RowScores]:
    """Per-row statistics of one candidate under every metric its rows allow, in METRICS' order.

    Which rows count depends on the references and keywords alone, never on the answers, so that
    two candidates are always paired row by row.

    Args:
        answers: what the candidate wrote.
        references: what was wanted; rows without a text (None, blank) count in no metric that
            compares with one.
        keywords: words to be found per row; rows without any do not count in keyword_recall.
        stopped: whether an answer ended by itself.
        likelihoods: (nats, tokens, bytes) of each row's reference under the candidate.
        only: names of the metrics wanted; all by default.

    Raises:
        ValueError: when lengths differ or a metric is unknown.
    """
    given = {"references": references, "keywords": keywords, "stopped": stopped}
    for name, values in {**given, "likelihoods": likelihoods}.items():
        if values is not None and len(values) != len(answers):
            raise ValueError(f"{len(values)} {name} for {len(answers)} answers")
    if unknown := set(only or ()) - set(METRICS):
        raise ValueError(f"unknown metrics: {', '.join(sorted(unknown))}")
    wanted = set(METRICS if only is None else only)
    found = _compared(answers, references, wanted)
    for name in wanted & {"distinct_1", "distinct_2"}:
        found[name] = _rows(name, _distinct(answers, int(name[-1])))
    if keywords is not None and "keyword_recall" in wanted:
        found["keyword_recall"] = _keyword_rows(answers, keywords)
    if answers and not any(answer.strip() for answer in answers):
        empty = f"all {len(answers)} answers are empty" if len(answers) > 1 else "an empty answer"
        found = {name: replace(rows, missing=empty) for name, rows in found.items()}
    if stopped is not None and "stop_rate" in wanted:
        found["stop_rate"] = _rows("stop_rate", [float(s) for s in stopped])
    if likelihoods is not None:
        for name in wanted & {"perplexity", "bits_per_byte"}:
            found[name] = _likelihood_rows(name, likelihoods)
    return {name: found[name] for name in METRICS if name in found}


def _compared(
    answers: Sequence[str], references: Sequence[Reference], wanted: set[str]
) -> dict[str, RowScores]:
    """The metrics that compare with references."""
    kept = [(a, t) for a, t in zip(answers, map(_texts, references), strict=True) if t]
    said, right = [a for a, _ in kept], [t for _, t in kept]
    found = {name: sacre_rows(name, said, right) for name in wanted & set(_SCORERS)}
    if rouges := wanted & set(_ROUGE):
        found |= _rouge_rows(rouges, said, right)
    for name, score in (("exact", exact_match), ("token_f1", token_f1)):
        if name in wanted:
            found[name] = _rows(name, [max(score(a, t) for t in texts) for a, texts in kept])
    forms = [(json_object(a), json_object(texts[0])) for a, texts in kept]
    asked = [(given, form) for given, form in forms if form is not None]
    if asked and "json_valid" in wanted:
        found["json_valid"] = _rows("json_valid", [float(given is not None) for given, _ in asked])
    if asked and "json_fields" in wanted:
        found["json_fields"] = _rows("json_fields", [equal_fields(*pair) for pair in asked])
    if "length_ratio" in wanted:
        lengths = [(len(a.split()), len(t[0].split())) for a, t in kept]
        found["length_ratio"] = _rows("length_ratio", lengths)
    if answers and not kept:
        found = {name: replace(rows, missing="no reference texts") for name, rows in found.items()}
    return found


def sentence_scores(
    answers: Sequence[str], references: Sequence[Reference], metric: str = "chrf"
) -> list[float | None]:
    """The score of each row alone, for the biggest gains and losses; None: no reference.

    Sentence BLEU counts the n-gram orders that the row has; chrF ranks short rows better.
    """
    scorer = BLEU(effective_order=True, force=True) if metric == "bleu" else _SCORERS[metric]
    scores: list[float | None] = []
    for answer, reference in zip(answers, references, strict=True):
        texts = _texts(reference)
        scores.append(float(scorer.sentence_score(answer, texts).score) if texts else None)
    return scores


def sacre_rows(
    name: str, answers: Sequence[str], references: Sequence[Sequence[str]], scorer: Any = None
) -> RowScores:
    """Rows of a sacreBLEU metric: `bleu`, `chrf`, `ter`, or a scorer with other settings.

    Args:
        name: a key of METRICS.
        answers: one text a row.
        references: one or more texts a row.
        scorer: a sacreBLEU metric object; the default one of `name` when left out.
    """
    metric = METRICS[name]
    if not answers:
        return RowScores(metric, np.empty((0, 0)))
    if name == "ter":
        pairs = [(a, t) for a, texts in zip(answers, references, strict=True) for t in texts]
        if max(len(a.split()) * len(t.split()) for a, t in pairs) > TER_WORDS**2:
            reason = f"TER takes too long on texts of more than {TER_WORDS} words"
            return RowScores(metric, np.empty((len(answers), 0)), reason)
    own = scorer or _SCORERS[name]
    streams = [list(texts) for texts in zip_longest(*references)]  # None: fewer references
    statistics = np.array(own._extract_corpus_statistics(answers, streams), dtype=np.float64)
    signature = str(own.get_signature())
    metric = replace(metric, signature=signature, reduce=partial(_sacre, own))
    return RowScores(metric, statistics)


def _texts(reference: Reference) -> list[str]:
    given = [reference] if isinstance(reference, str) else list(reference or ())
    return [text for text in given if text.strip()]


def _rows(name: str, values: Sequence[float] | Sequence[tuple[float, float]]) -> RowScores:
    array = np.array(values, dtype=np.float64)
    return RowScores(METRICS[name], array.reshape(len(values), -1 if len(values) else 0))


def _rouge_rows(
    names: set[str], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, RowScores]:
    """Best F1 over a row's references, as rouge-score's `score_multi` does."""
    from rouge_score.rouge_scorer import RougeScorer  # loads nltk: 2 s

    scorer = RougeScorer(sorted(names))
    best = [scorer.score_multi(t, a) for a, t in zip(answers, references, strict=True)]
    readable = any(re.search("[a-z0-9]", text.lower()) for texts in references for text in texts)
    missing = "" if readable or not answers else "ROUGE reads a-z and 0-9 only"
    return {
        name: replace(_rows(name, [row[name].fmeasure for row in best]), missing=missing)
        for name in names
    }


def _keyword_rows(answers: Sequence[str], keywords: Sequence[Collection[str]]) -> RowScores:
    shares = []
    for answer, given in zip(answers, keywords, strict=True):
        if isinstance(given, str):
            raise ValueError(f"keywords are a list of words, found the text {given!r}")
        words = [word for word in given if word.strip()]
        if words:
            shares.append(sum(has_keyword(answer, word) for word in words) / len(words))
    rows = _rows("keyword_recall", shares)
    return rows if shares or not answers else replace(rows, missing="no row carries keywords")


def _distinct(answers: Sequence[str], order: int) -> list[tuple[float, float]]:
    """Per row: n-grams that no earlier row has, and words."""
    seen: set[tuple[str, ...]] = set()
    rows = []
    for answer in answers:
        words = answer.lower().split()
        before = len(seen)
        seen.update(zip(*(words[i:] for i in range(order)), strict=False))
        rows.append((float(len(seen) - before), float(len(words))))
    return rows


def _likelihood_rows(name: str, likelihoods: Sequence[Likelihood]) -> RowScores:
    if name == "perplexity":
        pairs = [(nats, float(tokens)) for nats, tokens, _ in likelihoods]
    else:
        pairs = [(nats / math.log(2), float(size)) for nats, _, size in likelihoods]
    rows = _rows(name, pairs)
    finite = bool(np.isfinite(rows.statistics).all())
    return rows if finite else replace(rows, missing="a row's likelihood is not a finite number")
