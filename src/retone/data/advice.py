"""Whether tuning is the way at all, from what the data shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from retone.conversation import Conversation

PROMPT_ROWS, LITTLE_ROWS = 50, 100  # rules of thumb, not measurements
FACT_WORDS = 30  # an answer that is a fact is short ...
FACT = re.compile(r"\d")  # ... and holds a figure: a price, a date, a number of something
MOST = 0.5  # share of the rows that have to look like that


@dataclass(frozen=True)
class Advice:
    """What to do with this data.

    Attributes:
        advice: prompt, little (expect little), retrieval or tune.
        says: one sentence.
        because: what of the data tells so.
    """

    advice: Literal["prompt", "little", "retrieval", "tune"]
    says: str
    because: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The object `advice` of `retone inspect --json`."""
        return {**asdict(self), "because": list(self.because)}


def advise(rows: int, task: tuple[str, str], looked: Sequence[Conversation]) -> Advice:
    """Tune, or something cheaper.

    Args:
        rows: training rows.
        task: what a good answer is, and the reason in words (`tasks.found_task`).
        looked: some of the rows.
    """
    count = f"{rows:,} training rows"
    if not looked:
        says = "Plain text teaches how it sounds and what it is about, not to answer questions."
        return Advice("tune", says, (count, "no questions and answers"))
    if rows < PROMPT_ROWS:
        says = "Write a prompt with a few of these rows as examples first; tuning needs more rows."
        return Advice("prompt", says, (count,))
    facts = sum(map(_is_fact, looked))
    if task[0] == "qa" or facts > MOST * len(looked):
        told = task[1] if task[0] == "qa" else f"{facts} of {len(looked)} answers are short facts"
        says = (
            "Answers that are facts belong into retrieval, above all where they change: tuning "
            "learns how to answer better than what. The report of a qa run compares both."
        )
        return Advice("retrieval", says, (count, told))
    if rows < LITTLE_ROWS:
        says = "Expect little from so few rows; compare with a prompt, as the report does."
        return Advice("little", says, (count, task[1]))
    says = "Tune: a style or a form in this many rows is what tuning learns best."
    return Advice("tune", says, (count, task[1]))


def _is_fact(row: Conversation) -> bool:
    """A question with a short answer that holds a figure."""
    asked = row.question.rstrip().endswith("?")
    return asked and len(row.answer.split()) <= FACT_WORDS and bool(FACT.search(row.answer))
