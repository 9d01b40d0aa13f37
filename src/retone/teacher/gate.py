"""Whether a row that a teacher wrote may be trained on, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retone.conversation import Conversation, Message
from retone.data.findings import CHECKS
from retone.data.languages import language_of
from retone.data.row_checks import row_faults
from retone.teacher.answers import Draft
from retone.teacher.persona import Persona
from retone.teacher.reading import plain_words

ROOM = 1.25  # an answer may have so many times the words that were asked for
COPIED = 0.6  # of an answer's 4-grams of words that stand in one example line
GRAM = 4


def faults_of(
    persona: Persona, messages: Sequence[Message], answers: Sequence[Draft], least: float
) -> list[str]:
    """What is wrong with a row, each as `code: what was found`; nothing where it may be kept.

    Args:
        persona: who should have spoken.
        messages: the whole conversation.
        answers: the persona's part of it, as it was judged.
        least: share of the rubric's points that each needs.
    """
    found = [fault for answer in answers for fault in _draft_faults(answer, least)]
    found += text_faults(messages)
    for answer in answers:
        found += _answer_faults(persona, answer.text)
    return list(dict.fromkeys(found))


def text_faults(messages: Sequence[Message]) -> list[str]:
    """What the data doctor would warn of in a conversation."""
    return [
        f"{fault.code}: {fault.shown()}"
        for fault in row_faults(Conversation(tuple(messages)))
        if CHECKS[fault.code].severity != "note"
    ]


def _draft_faults(answer: Draft, least: float) -> Iterator[str]:
    if not answer.finished:
        yield "cut: the answer did not end"
    if answer.points is not None and answer.points < least:
        yield f"rubric: {answer.points:.0%} of the points, {least:.0%} are asked for"
    if answer.judged and answer.points is None and least > 0:
        yield "rubric: the verdict could not be read"


def _answer_faults(persona: Persona, answer: str) -> Iterator[str]:
    words = len(answer.split())
    if words > ROOM * persona.most_words:
        yield f"long: {words} words, {persona.most_words} are asked for"
    copied = likeness(answer, persona.examples)
    if copied > COPIED:
        yield f"copied: {copied:.0%} of it stands in an example line"
    try:
        language = language_of(answer)
    except ImportError:  # the extra `languages` is not installed; the doctor says so later
        return
    if language and language.casefold() not in {name.casefold() for name in persona.languages}:
        yield f"language: {language}"


def likeness(answer: str, lines: Sequence[str]) -> float:
    """The largest share of an answer's 4-grams of words that one of the lines holds, 0 to 1."""
    own = _grams(answer)
    if not own:
        return float(any(plain_words(answer) == plain_words(line) for line in lines))
    return max((len(own & _grams(line)) / len(own) for line in lines), default=0.0)


def _grams(text: str) -> set[tuple[str, ...]]:
    words = plain_words(text).split()
    return {tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)}
