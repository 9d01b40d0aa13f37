"""Questions for a persona: topics by families by forms, and a door that repeats stop at."""

from __future__ import annotations

import math
import random
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import product

from rensa import RMinHash, RMinHashLSH

from retone.conversation import Message
from retone.errors import InputError, nearest
from retone.teacher.asking import Ask
from retone.teacher.client import Teacher
from retone.teacher.limits import OverBudget
from retone.teacher.persona import Persona
from retone.teacher.reading import plain_words, texts_in

EACH = (2, 5)  # fewest and most questions that are asked for at once
NEAR = 0.6  # of the 4-grams of characters that two questions share: then they are one
PERMUTATIONS, BANDS = 96, 24  # finds 96 % of the pairs at 0.6 (Leskovec et al., chapter 3)
LEAST_FRESH = 0.05  # of the questions of a round; below it the teacher has nothing new to ask
TEMPERATURE = 0.9
_SCHEMA = {
    "type": "object",
    "properties": {"questions": {"type": "array", "items": {"type": "string"}}},
    "required": ["questions"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    topic: str
    family: str
    form: str


@dataclass(frozen=True)
class Question:
    """A question that was let in.

    Attributes:
        text: what is asked.
        cell: where in the grid it was asked for.
        parent: sha256 of the prompt that it came from; empty for questions of the user.
    """

    text: str
    cell: Cell
    parent: str = ""


@cache
def question_table() -> dict[str, dict[str, str]]:
    """`family` and `form` -> name -> what such a question is like."""
    text = (files("retone") / "tables" / "questions.toml").read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, str]]] = tomllib.loads(text)
    return {kind: {name: row["asks"] for name, row in rows.items()} for kind, rows in table.items()}


def families_of(persona: Persona) -> dict[str, str]:
    """The families that a persona is asked: those of the table and its own."""
    known = question_table()["family"]
    wrong = [name for name in persona.without if name not in known]
    if wrong:
        raise InputError(
            "the persona leaves out a family that is not there",
            f"without: {wrong[0]}{nearest(wrong[0], known)}",
            f"one of {', '.join(known)}",
            "unknown-family",
        )
    kept = {name: asks for name, asks in known.items() if name not in persona.without}
    if not kept and not persona.families:
        raise InputError(
            "the persona leaves out every family of questions",
            f"without: {', '.join(persona.without)}",
            "take one of them out of `without`, or add one under [families]",
            "no-family",
        )
    return {**kept, **persona.families}


def grid(persona: Persona, seed: int) -> list[Cell]:
    """Every topic by every family by every form, in an order that mixes them."""
    cells = [
        Cell(*each)
        for each in product(persona.topics, families_of(persona), question_table()["form"])
    ]
    random.Random(seed).shuffle(cells)
    return cells


class Door:
    """Lets a question in that no earlier one nearly was.

    Candidates come from MinHash signatures (`rensa`) of 4-grams of characters, and each is verified
    by its exact Jaccard similarity. Kept of each question are its words and signature.
    """

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self._index = RMinHashLSH(NEAR, PERMUTATIONS, BANDS)
        self._texts: list[str] = []
        self._known: set[str] = set()

    def __len__(self) -> int:
        return len(self._texts)

    def lets_in(self, question: str) -> bool:
        """Whether it is new; what is new is known from then on."""
        plain = plain_words(question)
        if not plain:
            self.refused["empty"] += 1
            return False
        if plain in self._known:
            self.refused["exact repeat"] += 1
            return False
        grams = _grams(plain)
        signature = RMinHash(PERMUTATIONS, 1)
        signature.update(sorted(grams))
        for at in self._index.query(signature):
            other = _grams(self._texts[at])
            if len(grams & other) >= NEAR * len(grams | other):
                self.refused["near-repeat"] += 1
                return False
        self._index.insert(len(self._texts), signature)
        self._texts.append(plain)
        self._known.add(plain)
        return True


@dataclass
class Asked:
    """How the search for questions went.

    Attributes:
        wanted: distinct questions.
        proposed: by the teacher.
        requests: for lists of them.
        unread: requests whose answer held none.
        ended: why it stopped.
    """

    wanted: int
    proposed: int = 0
    requests: int = 0
    unread: int = 0
    ended: str = ""
    refused: Counter[str] = field(default_factory=Counter)


def find_questions(
    teacher: Teacher, persona: Persona, wanted: int, *, seed: int, asked: Asked, door: Door
) -> Iterator[Question]:
    """Distinct questions, in rounds over the grid, until there are as many as are wanted.

    It also ends where the budget does, or where a round brings hardly anything new; `asked.ended`
    says which. What comes out depends on the answers alone, not on their timing.
    """
    cells, found, turn = grid(persona, seed), 0, 0
    each = min(EACH[1], max(EACH[0], math.ceil(wanted / len(cells))))
    try:
        while found < wanted:
            fresh, proposed = 0, asked.proposed
            for cell, texts in _round(teacher, persona, cells, each, turn, asked):
                for text, parent in texts:
                    asked.proposed += 1
                    if door.lets_in(text):
                        found += 1
                        fresh += 1
                        yield Question(text, cell, parent)
                    if found == wanted:
                        asked.ended = f"{wanted} distinct questions stand"
                        return
            turn += 1
            if fresh <= LEAST_FRESH * max(1, asked.proposed - proposed):
                asked.ended = f"the teacher has nothing new to ask after {turn} rounds"
                return
    except OverBudget:
        asked.ended = "the budget is used up"
    finally:
        asked.refused = door.refused


def _round(
    teacher: Teacher, persona: Persona, cells: Sequence[Cell], each: int, turn: int, asked: Asked,
) -> Iterator[tuple[Cell, list[tuple[str, str]]]]:  # fmt: skip
    """One request for each cell: the questions with the hash of their prompt."""

    families = families_of(persona)

    async def questions(cell: Cell) -> list[tuple[str, str]]:
        ask = question_ask(persona, cell, families[cell.family], each, turn)
        reply = await teacher.ask(ask)
        return [(text, ask.prompt_sha256) for text in texts_in(reply.text, "questions")]

    ahead = max(2, teacher.gate.most // each)  # or the budget goes for questions nobody answers
    for found in teacher.each(questions, cells, ahead=ahead):
        asked.requests += 1
        asked.unread += not found.made
        yield found.item, found.made or []


def question_ask(persona: Persona, cell: Cell, family: str, each: int, turn: int) -> Ask:
    """The request for a few questions of one cell."""
    form = question_table()["form"][cell.form]
    place = persona.topics.index(cell.topic) + turn  # every language for every family
    language = persona.languages[place % len(persona.languages)]
    told = (
        f"People write to {persona.name}. {persona.who}\n\n"
        f"Write {each} messages that different people could send"
        + (f" ({persona.audience})" if persona.audience else "")
        + f".\nTopic: {cell.topic}\nKind: {family}\nForm: {form}\n"
        f"Language: {language}\n\n"
        "The messages differ in what they ask, in their words and in how they begin. They do not "
        f"name {persona.name}. Do not answer them.\n"
        'Reply with JSON alone: {"questions": ["...", "..."]}'
    )
    return Ask(
        (Message("user", told),), temperature=TEMPERATURE, max_tokens=60 * each, seed=turn,
        schema=_SCHEMA,
    )  # fmt: skip


def _grams(plain: str) -> set[str]:
    padded = f" {plain} "
    return {padded[at : at + 4] for at in range(max(1, len(padded) - 3))}
