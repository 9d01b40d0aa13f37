"""From a persona to rows: questions found, answers written, looked at, and kept or left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retone.conversation import Message
from retone.teacher.answers import Draft, Manner, Writer, Written
from retone.teacher.client import Found, Teacher
from retone.teacher.gate import faults_of, text_faults
from retone.teacher.limits import OverBudget
from retone.teacher.persona import Persona
from retone.teacher.questions import Question
from retone.teacher.rewriting import Pair


@dataclass(frozen=True)
class Row:
    """A row that a teacher wrote.

    Attributes:
        values: what is written of it.
        faults: why it is left out, each as `code: what was found`; empty for one that is kept.
    """

    values: dict[str, Any]
    faults: tuple[str, ...] = ()


@dataclass
class Tally:
    """What became of the rows.

    Attributes:
        kept, rewritten, dropped: rows; a rewritten one is kept.
        reasons: code of a fault -> rows left out with it.
        families: family of the question -> rows kept.
        unanswered: questions that the teacher did not answer, by the reason.
        ended: why it stopped before the end; empty where it did not.
    """

    kept: int = 0
    rewritten: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    ended: str = ""

    def count(self, row: Row, family: str, *, rewritten: bool) -> None:
        """Count one row."""
        if row.faults:
            self.dropped += 1
            self.reasons.update({fault.partition(":")[0] for fault in row.faults})
            return
        self.kept += 1
        self.rewritten += rewritten
        self.families[family] += 1


def write_rows(
    teacher: Teacher, persona: Persona, questions: Iterable[Question], manner: Manner, tally: Tally
) -> Iterator[Row]:
    """Conversations of the persona, one for each question, in their order.

    Ends where the questions or the budget do; `tally.ended` says so of the budget.
    """

    async def write(question: Question) -> Written:
        return await Writer(teacher, persona, manner).converse(question.text)

    try:
        for found in teacher.each(write, questions):
            if found.made is None:
                tally.unanswered[found.fault] += 1
                continue
            row = _conversation(teacher, persona, manner, found.item, found.made)
            tally.count(row, found.item.cell.family, rewritten=found.made.rewritten)
            yield row
    except OverBudget:
        tally.ended = "the budget is used up"


def pair_rows(
    teacher: Teacher, persona: Persona, pairs: Iterable[Found[Any, Pair]], tally: Tally
) -> Iterator[Row]:
    """Rows of a text in two forms, as `rewriting` makes them."""
    try:
        for found in pairs:
            if found.made is None:
                tally.unanswered[found.fault] += 1
                continue
            row = _pair(teacher, persona, found.made)
            tally.count(row, found.made.source, rewritten=False)
            yield row
    except OverBudget:
        tally.ended = "the budget is used up"


def _conversation(
    teacher: Teacher, persona: Persona, manner: Manner, question: Question, written: Written
) -> Row:
    faults = faults_of(persona, written.messages, written.answers, manner.least)
    asked = written.messages[0]
    unsound = written.plain and text_faults([asked, Message("assistant", written.plain)])
    cell = {name: value for name, value in vars(question.cell).items() if value}
    values = {
        "messages": [message.as_dict() for message in written.messages],
        **cell,
        **({"plain": written.plain} if written.plain and not unsound else {}),
        **_told(teacher, written.answers, math.fsum(written.costs)),
        "parents": [parent for parent in (question.parent[:16],) if parent] + written.parents,
    }
    return Row(values, tuple(faults))


def _pair(teacher: Teacher, persona: Persona, pair: Pair) -> Row:
    messages = [Message("user", pair.prompt), Message("assistant", pair.completion.text)]
    own = pair.source == "completion"  # the author's own text is right as it is
    faults = text_faults(messages) if own else faults_of(persona, messages, [pair.completion], 0.0)
    if not pair.prompt:
        faults.append("cut: the plain text did not end")
    values = {
        "prompt": pair.prompt,
        "completion": pair.completion.text,
        "given": pair.source,
        **_told(teacher, [pair.completion], pair.cost),
        "parents": list(pair.parents),
    }
    return Row(values, tuple(faults))


def _told(teacher: Teacher, answers: Sequence[Draft], cost: float) -> dict[str, Any]:
    """Where a row comes from."""
    given = [answer.points for answer in answers if answer.points is not None]
    points = {"points": round(min(given), 3)} if given else {}
    return {
        "teacher": f"{teacher.endpoint.model} at {teacher.endpoint.name}",
        **points,
        "gate": "rewritten" if any(answer.rewritten for answer in answers) else "kept",
        "cost": round(cost, 8),
    }
