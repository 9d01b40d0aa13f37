"""Training rows that repeat test rows: identical, with a few words changed, or rewritten in part.

The measure is containment: how much of a test row stands in a training row, however long that is.
Contamination of benchmarks is measured so: GPT-3 looks for common 13-grams of words (Brown et al.
2020, "Language Models are Few-Shot Learners", appendix C), Llama 2 for the share of tokens in
common 10-grams (Touvron et al. 2023, "Llama 2", A.6), both of test texts in the web. Rows of tuning
data are short: where a tenth of the words of one is replaced, few 10-grams survive, but most
3-grams do. Many of those are phrases or a template's, so each weighs by how few other rows have it.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from retone.conversation import Conversation, Document
from retone.data.duplicates import (
    COMMON_QUESTION,
    Flags,
    Hashes,
    content_key,
    question_key,
    spoken,
    word_grams,
)
from retone.data.findings import excerpt
from retone.data.spool import Trainable

# Measured with words replaced in real rows: proof/results/leakage.json.
LEAK = 0.5  # a training row that holds this share of a test row repeats it ...
LEAK_GRAMS = 10  # ... unless it is so few 3-grams that a phrase has as many
NEAR = 0.08  # a row that holds this share is likely to be a rewrite ...
NEAR_WEIGHT = 2.5  # ... unless it is two 3-grams that no other row happens to have
TEST_ROWS = 100  # a 3-gram that more test rows have is left out: it tells nothing and takes time
QUESTION_WORDS = 5  # a shorter question ("Good morning") comes again by itself
TOGETHER = 512  # rows that are compared in one call

Numbers = NDArray[np.int32]
Weights = NDArray[np.float32]


class Match(NamedTuple):
    """The test row that a training row repeats.

    Attributes:
        code: key of `findings.CHECKS`.
        share: of the test row's distinct 3-grams those that stand in the training row, 0 to 1; each
            weighs by how few other rows have it.
        where: "file, row n" of the test row.
        said: the beginning of what the test row says.
    """

    code: Literal["leak", "near-leak"]
    share: float
    where: str
    said: str


class LeakIndex:
    """The word 3-grams of test rows, in flat arrays."""

    def __init__(self, samples: Iterable[Trainable]) -> None:
        self._rows: list[tuple[str, str]] = []
        self._questions = array("Q")
        self._grams, self._starts, self._owners = _by_gram(self._read(samples))

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, samples: Iterable[Trainable]) -> Iterator[Match | None]:
        """For each training row the test row that it repeats most, or None.

        How many rows have a 3-gram is known when all are read. Until then, what each has in common
        with the test rows waits in a temporary file.
        """
        questions, sizes = array("Q"), array("I")
        having = np.zeros(len(self._grams), dtype=np.int32)  # training rows with the 3-gram
        with tempfile.TemporaryFile() as file:
            for together in _batches(samples):
                common, counts = self._common(together)
                np.add.at(having, common, np.int32(1))  # a plain 1 is much slower
                file.write(common.tobytes())
                sizes.extend(counts.tolist())
                questions.extend(map(_question, together))
            file.seek(0)
            asked = _asked(np.array(self._questions), np.array(questions))
            comparison = _Comparison(self._starts, self._owners, having, len(self))
            for start in range(0, len(sizes), TOGETHER):
                counts = np.array(sizes[start : start + TOGETHER])
                common = np.frombuffer(file.read(4 * int(counts.sum())), np.int32)
                for found in comparison.best(common, counts, asked[start : start + TOGETHER]):
                    yield self._match(*found)

    def _read(self, samples: Iterable[Trainable]) -> Iterator[tuple[Hashes, Numbers]]:
        """3-grams of test rows and their owners; everything else of the rows is kept here."""
        for together in _batches(samples):
            grams, rows = _row_grams(together)
            yield grams, rows + np.int32(len(self._rows))
            self._rows.extend(map(_told, together))
            self._questions.extend(map(_question, together))

    def _common(self, samples: Sequence[Trainable]) -> tuple[Numbers, NDArray[np.int64]]:
        """Numbers of the 3-grams that training rows share with test rows, and how many each has."""
        grams, rows = _row_grams(samples)
        if not len(self._grams):
            return np.empty(0, np.int32), np.zeros(len(samples), np.int64)
        order = np.argsort(grams)  # what is sorted is looked up faster
        grams, rows = grams[order], rows[order]
        place = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
        known = self._grams[place] == grams
        pairs = np.sort(rows[known].astype(np.int64) * len(self._grams) + place[known])
        row, gram = np.divmod(pairs[_first(pairs)], len(self._grams))
        return gram.astype(np.int32), np.bincount(row, minlength=len(samples))

    def _match(self, test: int, share: float, leaks: bool) -> Match | None:
        if test < 0:
            return None
        return Match("leak" if leaks else "near-leak", share, *self._rows[test])


class _Comparison:
    """Training rows against the test rows that have 3-grams in common with them.

    A 3-gram weighs 1 / n^2 where n - 1 rows have it besides the two that are compared. So a
    template of 1,000 words weighs next to nothing in 200 rows already, and a test row that was
    copied many times is found as if it were once: all of its 3-grams lose the same weight.
    """

    def __init__(self, starts: Numbers, owners: Numbers, having: Numbers, tests: int) -> None:
        self._sizes = sizes = np.diff(starts)
        rows = (having + sizes).astype(np.float32)  # that have the 3-gram, each with itself

        def matrix(weights: Weights) -> csr_array:  # [3-gram, test row]
            return csr_array((np.repeat(weights, sizes), owners, starts), (len(sizes), tests))

        # A row that has the 3-gram is one of those counted, a row that lacks it is not.
        self._shared = matrix(np.maximum(rows - 1, 1) ** -2)
        self._missed = matrix(rows**-2)
        self._ones = matrix(np.ones_like(rows))
        self._whole = self._missed.sum(axis=0)

    def best(
        self, common: Numbers, counts: NDArray[np.int64], asked: Numbers
    ) -> Iterator[tuple[int, float, bool]]:
        """For each row the test row it repeats most, or -1; the share; whether it is a leak.

        Args:
            common: 3-grams of all rows, one row after another.
            counts: how many of them each row has.
            asked: the test row that asks the same, or -1.
        """
        # int32 throughout, or every product copies the matrix with wider numbers
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        had = csr_array(
            (np.ones(len(common), np.float32), common, ends), (len(counts), len(self._sizes))
        )
        looked_at = np.flatnonzero((asked >= 0) | self._likely(had))
        had = had[looked_at]
        weights, missed, numbers = (had @ each for each in (self._shared, self._missed, self._ones))
        row, test = np.repeat(looked_at, np.diff(weights.indptr)), weights.indices
        weight = weights.data
        share = weight / (weight + np.maximum(self._whole[test] - missed.data, 0))
        leaks = (test == asked[row]) | ((share >= LEAK) & (numbers.data >= LEAK_GRAMS))
        found = np.flatnonzero(leaks | ((share >= NEAR) & (weight >= NEAR_WEIGHT)))
        found = found[np.lexsort((test[found], -share[found], ~leaks[found], row[found]))]
        found = found[np.unique(row[found], return_index=True)[1]]
        tests, shares, leak = asked.copy(), np.zeros(len(counts)), asked >= 0
        at = row[found]
        tests[at], shares[at], leak[at] = test[found], share[found], leaks[found]
        return zip(tests.tolist(), shares.tolist(), leak.tolist(), strict=True)

    def _likely(self, had: csr_array) -> Flags:
        """Rows that may have a share of NEAR with a test row: the others need no exact share."""
        weight = had @ self._shared
        enough = weight.data >= NEAR * self._whole[weight.indices]
        likely = np.zeros(had.shape[0], dtype=np.bool_)
        likely[np.repeat(np.arange(len(likely)), np.diff(weight.indptr))[enough]] = True
        return likely


def _batches(samples: Iterable[Trainable]) -> Iterator[list[Trainable]]:
    rest = iter(samples)
    while together := list(islice(rest, TOGETHER)):
        yield together


def _row_grams(samples: Sequence[Trainable]) -> tuple[Hashes, Numbers]:
    """Hashed 3-grams of all turns but the system prompts, and the row of each."""
    turns = [spoken(sample)[1] for sample in samples]
    grams, starts = word_grams(turn for row in turns for turn in row)
    sizes = np.diff(starts[np.cumsum([0, *map(len, turns)])])
    return grams, np.repeat(np.arange(len(samples), dtype=np.int32), sizes)


def _by_gram(read: Iterable[tuple[Hashes, Numbers]]) -> tuple[Hashes, Numbers, Numbers]:
    """Sorted distinct 3-grams, where the owners of each begin, and the owners in that order."""
    nothing = np.empty(0, np.uint64), np.empty(0, np.int32)
    grams, owners = map(np.concatenate, zip(nothing, *read, strict=True))
    order = np.argsort(grams, kind="stable")  # owners ascend, and so they do for each 3-gram
    grams, owners = grams[order], owners[order]
    distinct = _first(grams) | _first(owners)
    grams, owners = grams[distinct], owners[distinct]
    starts = np.flatnonzero(_first(grams))
    sizes = np.diff(starts, append=len(grams))
    telling = sizes <= TEST_ROWS
    ends = np.cumsum(sizes[telling])
    return (
        grams[starts[telling]],
        np.concatenate([[0], ends]).astype(np.int32),
        owners[np.repeat(telling, sizes)],
    )


def _first(values: NDArray[Any]) -> Flags:
    """Which values differ from the one before."""
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])


def _question(sample: Trainable) -> int:
    """A hash of what is asked; of all that is said where hardly anything is asked."""
    turns = sample.prompt if isinstance(sample, Conversation) else ()
    words = sum(len(turn.content.split()) for turn in turns if turn.role != "system")
    return question_key(sample) if words >= QUESTION_WORDS else content_key(sample)


def _asked(tests: Hashes, questions: Hashes) -> Numbers:
    """For each training row the first test row that asks the same, or -1.

    A question that many rows share is an instruction, and none of them repeats another by it.
    """
    if not len(tests):
        return np.full(len(questions), -1, np.int32)
    known, first, number = np.unique(tests, return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(known, questions), len(known) - 1)
    same = known[place] == questions
    number = number + np.bincount(place[same], minlength=len(known))
    return np.where(same & (number <= COMMON_QUESTION)[place], first[place], -1).astype(np.int32)


def _told(sample: Trainable) -> tuple[str, str]:
    """Where a test row stands, and the beginning of what it says."""
    text = sample.text if isinstance(sample, Document) else sample.question or sample.answer
    return f"{sample.source}, row {sample.row}", excerpt(text)
