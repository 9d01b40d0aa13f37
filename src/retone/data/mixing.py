"""Which rows are used and on which side they stand: sample, proportions, splits.

Everything is decided by the rows' content and the seed, never by their order: a row's rank is a
hash of both, and where some are to be chosen, those of the lowest ranks are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]
Groups = NDArray[Any]  # equal for rows that must not be separated


def ranks(keys: Hashes, seed: int) -> Hashes:
    """Hashes of content hashes and the seed: equal keys have equal ranks.

    The mixing function is SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
    """
    mixed = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sampled(ranks: Hashes, sample: int | float | None) -> Flags:
    """The rows of one source to keep: a number of them, a share (at least one row), or all."""
    if sample is None:
        return np.ones(len(ranks), dtype=np.bool_)
    count = sample if isinstance(sample, int) else max(1, round(sample * len(ranks)))
    return _lowest(ranks, count)


def balanced(
    ranks: Hashes, sources: NDArray[Any], weights: Mapping[int, float], repeats: Sequence[int]
) -> Flags:
    """The rows to keep so that sources with weights stand in these proportions.

    As many rows as possible are kept. Sources without a weight keep all of theirs, and those
    without any row are left out of the proportions.

    Args:
        ranks: of each row.
        sources: number of each row's source.
        weights: source -> share of the mixture, in any unit.
        repeats: for each source, how often one of its rows is used.
    """
    kept = np.ones(len(ranks), dtype=np.bool_)
    counts = np.bincount(sources, minlength=len(repeats))
    used = {at: weight for at, weight in weights.items() if counts[at]}
    if not used:
        return kept
    unit = min(counts[at] * repeats[at] / weight for at, weight in used.items())
    for at, weight in used.items():
        mine = np.flatnonzero(sources == at)
        kept[mine] = _lowest(ranks[mine], max(1, round(unit * weight / repeats[at])))
    return kept


def held_out(ranks: Hashes, groups: Groups, fraction: float) -> Flags:
    """The rows to hold out: whole groups in the order of their ranks, while they fit.

    At least one group is held out when there are two and the fraction is not 0; a group that is
    larger than the share asked for stays, unless all are. One group alone is never held out.
    """
    held = np.zeros(len(ranks), dtype=np.bool_)
    if fraction == 0 or not len(ranks):
        return held
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return held
    rank = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(rank, number, ranks)
    left = max(1, round(fraction * len(ranks)))
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    for group in np.argsort(rank, kind="stable").tolist():
        if sizes[group] <= left:
            chosen[group] = True
            left -= sizes[group]
        if not left:
            break
    if not chosen.any():
        chosen[np.lexsort((rank, sizes))[0]] = True
    held[chosen[number]] = True
    return held


def touching(groups: Groups, held: Flags) -> Flags:
    """Rows that are not held out but belong together with one that is."""
    return np.isin(groups, groups[held]) & ~held


def _lowest(ranks: Hashes, count: int) -> Flags:
    kept = np.zeros(len(ranks), dtype=np.bool_)
    kept[np.argsort(ranks, kind="stable")[:count]] = True
    return kept
