"""Scores of parts of the test rows: by topic, by kind of question, by what was held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from retone.evaluation.metrics import RowScores
from retone.evaluation.statistics import score


def group_scores(
    scores: Mapping[str, Mapping[str, RowScores]], groups: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> candidate -> metric -> score, in the order in which groups first come.

    Args:
        scores: candidate -> metric -> rows.
        groups: the group of every row; an empty list or one group alone gives no table.
        metrics: those wanted; one that does not count every row is left out, because its rows
            cannot be told apart any more.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return {}
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        chosen = np.array([group == name for group in groups])
        table[name] = {
            candidate: {
                metric: asdict(score(replace(by[metric], statistics=by[metric].statistics[chosen])))
                for metric in metrics
                if metric in by and by[metric].n == len(groups)
            }
            for candidate, by in scores.items()
        }
    return table
