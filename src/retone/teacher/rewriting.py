"""From texts that are there to pairs and questions: restyled, made plain, or evolved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retone.conversation import Message
from retone.teacher.answers import Draft, fenced
from retone.teacher.asking import Ask
from retone.teacher.client import Teacher
from retone.teacher.limits import OverBudget
from retone.teacher.persona import Persona
from retone.teacher.questions import Asked, Cell, Door, Question
from retone.teacher.reading import texts_in

# How a question becomes another one (after Evol-Instruct: Xu et al. 2023, arXiv:2304.12244).
EVOLUTIONS = {
    "deeper": "asks for the reasons behind it, or one step further",
    "broader": "asks about something related in another field of life, as rare as this one",
    "constrained": "asks the same under a condition that changes the answer",
    "concrete": "replaces what is general by a particular situation with names, places or numbers",
}
TOKENS_A_CHARACTER = 0.6  # most, for what is about as long as the text
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Pair:
    """Two forms of one text.

    Attributes:
        prompt: the plain one.
        completion: the one in the voice, as a draft that can be looked at.
        source: which of them the user gave.
        cost: US dollars.
        parents: sha256 of the prompts behind it.
    """

    prompt: str
    completion: Draft
    source: str
    cost: float
    parents: tuple[str, ...]


def restyle_ask(persona: Persona, text: str, seed: int) -> Ask:
    """The request for a plain text in the voice."""
    told = (
        f"{persona.system}\n\n{persona.shown}\n\nSay the following in your own voice. Keep what it "
        f"says, add nothing to it, and answer with the new text alone.\n{fenced(text)}"
    )
    return _ask(told, text, seed)


def plain_ask(persona: Persona, text: str, seed: int) -> Ask:
    """The request for a text of the author in plain words (back-translation: Sennrich et al. 2016,
    arXiv:1511.06709, where the authentic text is the one that is learnt)."""
    told = (
        "Say the following in plain, neutral, modern words, as anybody would. Keep what it says, "
        f"add nothing to it, and answer with the new text alone.\n{fenced(text)}"
    )
    return _ask(told, text, seed)


async def restyled(teacher: Teacher, persona: Persona, text: str, seed: int) -> Pair:
    """A plain text with what the persona makes of it. Raises as `Teacher.ask`."""
    ask = restyle_ask(persona, text, seed)
    reply = await teacher.ask(ask)
    styled = Draft(reply.text.strip(), finished=reply.finished)
    return Pair(text, styled, "prompt", reply.cost, (ask.prompt_sha256[:16],))


async def made_plain(teacher: Teacher, persona: Persona, text: str, seed: int) -> Pair:
    """A text of the author with what it says in plain words. Raises as `Teacher.ask`."""
    ask = plain_ask(persona, text, seed)
    reply = await teacher.ask(ask)
    plain = reply.text.strip() if reply.finished else ""
    return Pair(plain, Draft(text), "completion", reply.cost, (ask.prompt_sha256[:16],))


def evolve_questions(
    teacher: Teacher, persona: Persona, seeds: Sequence[str], asked: Asked, door: Door
) -> Iterator[Question]:
    """Questions that grow out of the user's own, each in every way of `EVOLUTIONS`.

    The seeds themselves come first.
    """
    kept = [seed for seed in seeds if door.lets_in(seed)][: asked.wanted]
    yield from (Question(text, Cell("", "seed", "")) for text in kept)
    found = len(kept)
    steps = [(seed, way) for way in EVOLUTIONS for seed in kept]

    async def evolve(step: tuple[str, str]) -> list[tuple[str, str]]:
        seed, way = step
        told = (
            f"Somebody asks {persona.name}:\n{fenced(seed)}\n\nWrite two other questions, each of "
            f"which {EVOLUTIONS[way]}. Do not answer them.\n"
            'Reply with JSON alone: {"questions": ["...", "..."]}'
        )
        ask = Ask((Message("user", told),), temperature=TEMPERATURE, max_tokens=200)
        reply = await teacher.ask(ask)
        return [(text, ask.prompt_sha256) for text in texts_in(reply.text, "questions")]

    if found == asked.wanted:
        asked.ended = f"{found} seeds were enough"
        return
    asked.ended = "every seed has grown in every way"
    try:
        for grown in teacher.each(evolve, steps, ahead=teacher.gate.most):
            asked.requests += 1
            asked.unread += not grown.made
            for text, parent in grown.made or ():
                asked.proposed += 1
                if door.lets_in(text):
                    found += 1
                    yield Question(text, Cell("", grown.item[1], ""), parent)
                if found == asked.wanted:
                    asked.ended = f"{found} distinct questions stand"
                    return
    except OverBudget:
        asked.ended = "the budget is used up"
    finally:
        asked.refused = door.refused


def _ask(told: str, text: str, seed: int) -> Ask:
    tokens = int(len(text) * TOKENS_A_CHARACTER) + 64
    return Ask((Message("user", told),), temperature=TEMPERATURE, max_tokens=tokens, seed=seed)
