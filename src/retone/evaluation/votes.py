"""Blind votes: which of two answers is better, when nobody says whose they are."""

from __future__ import annotations

import datetime
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

_TABLE = """CREATE TABLE IF NOT EXISTS votes (
    time TEXT NOT NULL, question TEXT NOT NULL, tuned TEXT NOT NULL, base TEXT NOT NULL,
    tuned_side TEXT NOT NULL CHECK (tuned_side IN ('a', 'b')),
    choice TEXT NOT NULL CHECK (choice IN ('tuned', 'base', 'equal')))"""


@dataclass(frozen=True)
class Tally:
    """What the votes say.

    Attributes:
        tuned, base, equal: votes for each.
        p: of the sign test (exact binomial, two sides; equal votes are left out): how often votes
            by lot would be as one-sided.
    """

    tuned: int
    base: int
    equal: int
    p: float

    def __str__(self) -> str:
        count = self.tuned + self.base + self.equal
        told = f"{count} vote{'' if count == 1 else 's'}: {self.tuned} tuned, "
        told += f"{self.base} base, {self.equal} equal; sign test p = {self.p:.2g}"
        return told + ("." if self.p < 0.05 else ", which may be luck.")


class Votes:
    """The votes of a run, in an SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, question: str, answers: tuple[str, str], tuned_at: int, choice: str) -> None:
        """Keep a vote.

        Args:
            question: what was asked.
            answers: those of side A and B.
            tuned_at: the side (0 or 1) of the tuned model.
            choice: a, b or equal.
        """
        voted = "equal"
        if choice != voted:
            voted = "tuned" if "ab".index(choice) == tuned_at else "base"
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = (now, question, answers[tuned_at], answers[1 - tuned_at], "ab"[tuned_at], voted)
        with closing(sqlite3.connect(self._path, timeout=30)) as database, database:
            database.execute(_TABLE)
            database.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?)", row)

    def tally(self) -> Tally | None:
        """The count and its sign test; None where nobody voted."""
        if not self._path.is_file():
            return None
        with closing(sqlite3.connect(self._path, timeout=30)) as database:
            counted = dict(database.execute("SELECT choice, COUNT(*) FROM votes GROUP BY choice"))
        return sign_test(*(counted.get(who, 0) for who in ("tuned", "base", "equal")))


def sign_test(tuned: int, base: int, equal: int) -> Tally:
    """The exact sign test of paired votes (Dixon and Mood 1946)."""
    from scipy.stats import binomtest  # loads for most of a second

    decided = tuned + base
    p = float(binomtest(tuned, decided).pvalue) if decided else 1.0
    return Tally(tuned, base, equal, p)
