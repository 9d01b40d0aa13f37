"""Findings that need all rows: what was left out, what repeats, what dominates, what drifts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from retone.config import DataSection
from retone.conversation import Conversation
from retone.data.duplicates import COMMON_QUESTION
from retone.data.findings import KEPT_ROWS, Finding, excerpt, finding
from retone.data.languages import language_findings
from retone.data.leakage import LeakIndex
from retone.data.sample_table import TOLD_EVERY, SampleTable, Tick
from retone.data.spool import Trainable

# Test rows that were drawn from the training files are looked for up to this number where
# near-duplicates are dropped, and so stand on one side: memory and time grow with their 3-grams.
HELD_OUT = 10_000
FEW_ROWS = 50
ENOUGH_ROWS = 20  # to say anything about a distribution
LOST_ROWS, LOST_SHARE = 5, 0.1  # of a source, at least
DOMINANT_SHARE, DOMINANT_LABEL = 0.05, 0.8  # of free answers, and of a few labels
LABEL_ROWS = 5  # answers that come so often each, in the mean, are labels
DRIFT = 2.0  # ratio of two medians of words

# Reasons of the ledger that are no fault of a row.
ASKED_FOR = (
    "not-sampled",
    "over-weight",
    "rejected-only",
    "not-a-conversation",
    "not-plain-text",
    "also-in-validation",
)
REPEATS = ("duplicate", "near-duplicate", "also-in-test")
OTHER_CODES = {
    "unusable": "unusable-row",
    "longer-than-max-length": "answer-cut",
    "nothing-trained": "never-trained",
    "no-assistant-turn": "never-trained",
}


def corpus_findings(
    table: SampleTable, data: DataSection, against: Iterable[Trainable], tick: Tick
) -> list[Finding]:
    """What all rows together show, once every sample has its side.

    Args:
        table: the samples, encoded.
        data: how they were asked for.
        against: rows that must not be trained on, besides the test rows.
        tick: told about progress.
    """
    return [
        *table.hits.findings(),
        *_left_out(table),
        *_leaks(table, against, tick, deduplicated=data.deduplicate == "near"),
        *_contradictions(table),
        *_dominant(table),
        *_drift(table, data),
        *_few(table),
        *language_findings(table),
        *(finding("file", 1, detail=note) for note in table.notes),
    ]


def _left_out(table: SampleTable) -> Iterator[Finding]:
    """Dropped rows by what they lack, and sources that lost too many."""
    counts: Counter[str] = Counter()
    rows: dict[str, list[str]] = {}
    lost: list[str] = []
    faulty = 0
    for at, ledger in enumerate(table.ledgers):
        faults = 0
        for reason, count in ledger.dropped.items():
            if reason in ASKED_FOR:
                continue
            code = reason if reason in REPEATS else OTHER_CODES.get(reason, "rejected-row")
            counts[code] += count
            rows.setdefault(code, []).extend(ledger.examples.get(reason, []))
            faults += 0 if reason in (*REPEATS, "unusable") else count
        read = table.read(at) - sum(ledger.dropped[reason] for reason in ASKED_FOR)
        if faults >= max(LOST_ROWS, LOST_SHARE * read):
            faulty += faults
            lost.append(f"{ledger.path}: {faults:,} of {read:,}")
    for code, count in counts.items():
        yield finding(code, count, rows[code][:KEPT_ROWS])
    if lost:
        yield finding("rows-lost", faulty, lost[:KEPT_ROWS])


def _leaks(
    table: SampleTable, against: Iterable[Trainable], tick: Tick, *, deduplicated: bool
) -> Iterator[Finding]:
    """Training rows that say what test rows, or rows of files named by the user, say."""
    held = np.flatnonzero(table.on("test"))
    if not table.tests and deduplicated and len(held) > HELD_OUT:
        total = len(held)
        held = np.sort(held[np.argpartition(table.keys[held], HELD_OUT)[:HELD_OUT]])
        yield finding("leaks-sampled", 1, detail=f"{HELD_OUT:,} of {total:,}")
    tests = table.spool.samples(held.tolist())
    index = LeakIndex(chain(tests, against))
    if not len(index):
        return
    counts: Counter[str] = Counter()
    rows: dict[str, list[str]] = {}
    mine = np.flatnonzero(table.on("train") | table.on("validation")).tolist()
    searched = _told(table.spool.samples(mine), len(mine), tick)
    # Read twice: the first match comes when all rows have been searched.
    found = zip(index.search(searched), table.spool.samples(mine), strict=True)
    for match, sample in found:
        if match is None:
            continue
        counts[match.code] += 1
        kept = rows.setdefault(match.code, [])
        if len(kept) < KEPT_ROWS:
            where = f"{sample.source}, row {sample.row}"
            kept.append(f"{where}: as {match.where}, {match.share:.0%}: {excerpt(match.said)}")
    for code, count in counts.items():
        yield finding(code, count, rows[code])


def _told(samples: Iterable[Trainable], total: int, tick: Tick) -> Iterator[Trainable]:
    for done, sample in enumerate(samples, 1):
        if done % TOLD_EVERY == 0 or done == total:
            tick("looking for leaks", done, total, f"{done:,} rows")
        yield sample


def _contradictions(table: SampleTable) -> Iterator[Finding]:
    """Rows that ask the same and answer differently."""
    mine = np.flatnonzero((table.sides >= 0) & table.chats)
    asked = table.questions ^ table.settings
    by_question = mine[np.lexsort((table.answers[mine], asked[mine]))]
    groups = _runs(asked[by_question])
    differs = np.zeros(len(by_question), dtype=np.bool_)
    answers = table.answers[by_question]
    for start, stop in groups:
        if stop - start > COMMON_QUESTION:  # an instruction, and what it is about stands elsewhere
            continue
        differs[start:stop] = answers[start] != answers[stop - 1]
    rows = by_question[differs]
    if len(rows):
        yield finding("contradiction", len(rows), _shown(table, rows, by_question=True))


def _dominant(table: SampleTable) -> Iterator[Finding]:
    """One answer that too many training rows give."""
    mine = np.flatnonzero(table.on("train") & table.chats)
    if len(mine) < ENOUGH_ROWS:
        return
    answers, counts = np.unique(table.answers[mine], return_counts=True)
    labels = len(answers) * LABEL_ROWS <= len(mine)
    share = DOMINANT_LABEL if labels else DOMINANT_SHARE
    top = int(counts.argmax())
    if counts[top] >= max(5, share * len(mine)):
        rows = mine[table.answers[mine] == answers[top]]
        detail = f"{len(rows) / len(mine):.0%} of the training rows"
        yield finding("dominant-answer", len(rows), _shown(table, rows), detail)


def _drift(table: SampleTable, data: DataSection) -> Iterator[Finding]:
    """Answers that are much longer on one side, or in one source, than in another."""
    train = table.on("train") | table.on("validation")
    parts = {"the test rows": table.on("test") & table.chats}
    parts["the training rows"] = train & table.chats
    for at, source in enumerate(data.sources("train"), table.tests):
        name = f"source {at - table.tests + 1}, {source.path}"
        parts[name] = train & table.chats & (table.sources == at)
    medians = {
        name: float(np.median(table.words[which]))
        for name, which in parts.items()
        if which.sum() >= ENOUGH_ROWS
    }
    if not medians:
        return
    long, short = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    if medians[long] > DRIFT * max(1.0, medians[short]):
        detail = (
            f"median of {medians[long]:.0f} words in {long}, of {medians[short]:.0f} in {short}"
        )
        yield finding("length-drift", int(parts[long].sum()), detail=detail)


def _few(table: SampleTable) -> Iterator[Finding]:
    """Too few training rows."""
    rows = int((table.on("train") | table.on("validation")).sum())
    if rows < FEW_ROWS:
        yield finding("few-rows", rows)


def _runs(values: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """(start, stop) of each run of two or more equal values."""
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]]))
    starts, stops = edges[:-1], edges[1:]
    several = stops - starts > 1
    return list(zip(starts[several].tolist(), stops[several].tolist(), strict=True))


def _shown(table: SampleTable, rows: NDArray[np.int64], *, by_question: bool = False) -> list[str]:
    """The first of these rows with what they answer, and with what they ask where that tells."""
    first = np.sort(rows[:KEPT_ROWS])
    shown = []
    for sample in table.spool.samples(first.tolist()):
        assert isinstance(sample, Conversation)  # documents have no answer to compare
        asked = f"{excerpt(sample.question)} -> " if by_question else ""
        shown.append(f"{sample.where}: {asked}{excerpt(sample.answer)}")
    return shown
