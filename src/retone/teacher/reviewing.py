"""Rows that people look at one by one: what was decided stands in the file itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retone.errors import InputError
from retone.run_dir import write_whole

Decision = Literal["accepted", "edited", "rejected"]
DECISIONS: tuple[Decision, ...] = ("accepted", "edited", "rejected")
FIELD = "review"  # of a row, beside what it had
SAID = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
ABOUT = ("family", "topic", "points", "gate", "source", "place", "evidence", "plain")


@dataclass
class Review:
    """A file of rows under review.

    Every decision is written at once, so that whoever stops goes on where they were.
    """

    path: Path
    rows: list[dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> Review:
        """Read a file. Raises InputError where a line is no row with an answer."""
        if not path.is_file():
            raise InputError("there is no such file", str(path), "retone review FILE", "no-file")
        rows, wrong = [], []
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                "the file is not UTF-8",
                f"{path}: byte {error.start}",
                "save it as UTF-8",
                "not-utf8",
            ) from error
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                f"{answer_of(row)}{asked_of(row)}".encode()
                if row.get(FIELD, "open") not in (*DECISIONS, "open"):
                    raise TypeError(f"{FIELD} is no decision")
                rows.append(row)
            except (ValueError, LookupError, TypeError) as error:
                wrong.append(f"line {number}: {type(error).__name__}: {error}")
        if wrong or not rows:
            raise InputError(
                f"{len(wrong)} lines are no rows that can be reviewed" if wrong else "no rows",
                f"{path}: {'; '.join(wrong[:5]) or 'the file is empty'}",
                "rows are JSON objects with messages, prompt and completion, or question and "
                "answer; retone inspect shows what the file holds",
                "no-review",
            )
        return cls(path, rows)

    @property
    def counts(self) -> Counter[str]:
        """Decision -> rows; `open` for those that nobody decided."""
        return Counter(row.get(FIELD, "open") for row in self.rows)

    @property
    def target(self) -> Path:
        """Where the rows go that were not rejected."""
        return self.path.with_name(f"{self.path.stem}.reviewed{self.path.suffix}")

    def next_open(self, start: int = 0) -> int | None:
        """The first undecided row from `start` on, then from the beginning; None for none."""
        order = [*range(start, len(self.rows)), *range(start)]
        return next((at for at in order if FIELD not in self.rows[at]), None)

    def decide(self, at: int, decision: Decision, answer: str | None = None) -> None:
        """Keep a decision; an answer that differs from the row's makes it edited."""
        row = deepcopy(self.rows[at])
        if decision != "rejected" and answer is not None and answer.strip() != answer_of(row):
            _set_answer(row, answer.strip())
            decision = "edited"
        row[FIELD] = decision
        self._write([*self.rows[:at], row, *self.rows[at + 1 :]])
        self.rows[at] = row

    def take_back(self, at: int) -> None:
        """Forget what was decided of a row; an edited answer stays."""
        row = {name: value for name, value in self.rows[at].items() if name != FIELD}
        self._write([*self.rows[:at], row, *self.rows[at + 1 :]])
        self.rows[at] = row

    def finish(self) -> int:
        """Write the rows that were accepted or edited; how many they are."""
        kept = [
            {name: value for name, value in row.items() if name != FIELD}
            for row in self.rows
            if row.get(FIELD) in ("accepted", "edited")
        ]
        write_whole(self.target, _lines(kept))
        return len(kept)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_whole(self.path, _lines(rows))


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def answer_of(row: dict[str, Any]) -> str:
    """The answer that is looked at. Raises LookupError or TypeError where there is none."""
    holder, name = _place(row)
    answer = holder[name]
    if not isinstance(answer, str):
        raise TypeError(f"{name} is no text")
    return answer


def asked_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(who, what) before the answer."""
    if "messages" in row:
        return [(str(turn["role"]), str(turn["content"])) for turn in row["messages"][:-1]]
    asked, _ = next(pair for pair in SAID if pair[1] in row)
    return [("user", str(row.get(asked, "")))]


def about(row: dict[str, Any]) -> list[tuple[str, str]]:
    """What else is known of a row, for whoever decides."""
    return [(name, str(row[name])) for name in ABOUT if row.get(name) not in (None, "")]


def _set_answer(row: dict[str, Any], answer: str) -> None:
    holder, name = _place(row)
    holder[name] = answer


def _place(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Where the answer stands."""
    if "messages" in row:
        last = row["messages"][-1]
        if last["role"] != "assistant":
            raise LookupError("the last turn is not the assistant's")
        return last, "content"
    for asked, name in SAID:
        if asked in row and name in row:
            return row, name
    raise LookupError("no answer")
