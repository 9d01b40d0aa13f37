"""Answers that were paid for, by the content of what was asked, and what was spent (SQLite)."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from retone.errors import MachineError
from retone.teacher.asking import Reply

_SET_UP = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "CREATE TABLE IF NOT EXISTS replies ("
    " key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,"
    " completion_tokens INTEGER NOT NULL, cost REAL NOT NULL, finished INTEGER NOT NULL"
    ") WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (name TEXT PRIMARY KEY, dollars REAL NOT NULL)",
)


class Store:
    """A file of answers; used from one thread at a time.

    A write is on its way to the disk when `put` returns: it outlives the process, however that
    ends. Several processes may share the file. Every method raises MachineError where the file
    cannot be used.

    Args:
        path: the database; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=60
            )
        except (OSError, sqlite3.Error) as error:
            raise self._broken(error) from error
        for statement in _SET_UP:
            self._run(statement)

    def get(self, key: str) -> Reply | None:
        """The answer that was kept under a key."""
        found = self._run(
            "SELECT text, prompt_tokens, completion_tokens, cost, finished FROM replies"
            " WHERE key = ?",
            key,
        )
        if found is None:
            return None
        text, prompt, completion, cost, finished = found
        return Reply(text, prompt, completion, cost, bool(finished), cached=True)

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer."""
        self._run(
            "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)",
            key, reply.text, reply.prompt_tokens, reply.completion_tokens, reply.cost,
            reply.finished,
        )  # fmt: skip

    def spent(self, order: str) -> float:
        """US dollars that an order has cost so far, in this process and before."""
        found = self._run("SELECT dollars FROM spent WHERE name = ?", order)
        return float(found[0]) if found else 0.0

    def spend(self, order: str, dollars: float) -> None:
        """Add to what an order has cost."""
        self._run(
            "INSERT INTO spent VALUES (?, ?) ON CONFLICT (name)"
            " DO UPDATE SET dollars = dollars + excluded.dollars",
            order, dollars,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _run(self, statement: str, *values: Any) -> Any:
        """The first row that a statement gives."""
        try:
            return self._open.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> MachineError:
        return MachineError(
            "the kept answers cannot be used",
            f"{self._path}: {error}",
            "retone cache --delete teacher   (answers are asked and paid for again then)",
            "broken-store",
        )
