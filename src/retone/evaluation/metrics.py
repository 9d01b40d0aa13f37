"""Scores of answers against references, by well-kept libraries and with their signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU, CHRF


@dataclass(frozen=True)
class MetricValue:
    """A corpus score and what exactly was computed."""

    value: float
    n: int
    signature: str


def corpus_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, MetricValue]:
    """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) by sacreBLEU (Post 2018), 0 to 100.

    Raises ValueError when there are no rows: no rows, no score.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    scores = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        result = metric.corpus_score(list(answers), [list(references)])
        signature = str(metric.get_signature())
        scores[name] = MetricValue(float(result.score), len(answers), signature)
    return scores
