"""Questions and answers about documents, each with the words that bear it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from retone.conversation import Message
from retone.teacher.answers import fenced
from retone.teacher.asking import Ask
from retone.teacher.client import Teacher
from retone.teacher.documents import Chunk
from retone.teacher.gate import text_faults
from retone.teacher.limits import OverBudget
from retone.teacher.questions import Door
from retone.teacher.reading import object_in, plain_words

EACH = 3  # questions that are asked for of a chunk
TEMPERATURE = 0.3
_FIELDS = ("question", "answer", "keywords", "evidence")
_TEXT = {"type": "string"}
_SCHEMA = {
    "type": "object",
    "properties": {
        "pairs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "question": _TEXT,
                    "answer": _TEXT,
                    "keywords": {"type": "array", "items": _TEXT},
                    "evidence": _TEXT,
                },
                "required": list(_FIELDS),
                "additionalProperties": False,
            },
        }
    },
    "required": ["pairs"],
    "additionalProperties": False,
}


@dataclass
class Coverage:
    """How much of the documents was asked about.

    Attributes:
        chunks: looked at.
        covered: with a question that was kept.
        kept: questions.
        dropped: reason -> questions.
        ended: why it stopped before the end; empty where it did not.
    """

    chunks: int = 0
    covered: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    ended: str = ""


def document_rows(
    teacher: Teacher, chunks: Iterable[Chunk], coverage: Coverage, *, most: int
) -> Iterator[dict[str, Any]]:
    """Rows of question, answer, answer_keywords and evidence, `most` at the most.

    A pair whose evidence or keywords do not stand in its chunk is left out and counted; so is a
    question that was asked before.
    """

    async def pairs(chunk: Chunk) -> tuple[list[Any], Ask, float]:
        ask = _ask(chunk, EACH)
        reply = await teacher.ask(ask)
        listed = object_in(reply.text).get("pairs")
        listed = listed if isinstance(listed, list) else []
        return listed if reply.finished else listed[:-1], ask, reply.cost

    door = Door()
    try:
        for found in teacher.each(pairs, chunks, ahead=teacher.gate.most):
            coverage.chunks += 1
            if found.made is None:
                coverage.dropped[found.fault] += 1
                continue
            listed, ask, cost = found.made
            kept = [row for pair in listed if (row := _row(found.item, pair, coverage, door))]
            kept = kept[: most - coverage.kept]
            coverage.covered += bool(kept)
            coverage.kept += len(kept)
            for row in kept:
                yield {
                    **row,
                    "source": found.item.source,
                    "place": found.item.place or f"part {found.item.number}",
                    "teacher": f"{teacher.endpoint.model} at {teacher.endpoint.name}",
                    "cost": round(cost / len(kept), 8),
                    "parents": [ask.prompt_sha256[:16]],
                }
            if coverage.kept == most:
                coverage.ended = f"{most} questions stand"
                return
    except OverBudget:
        coverage.ended = "the budget is used up"


def _ask(chunk: Chunk, each: int) -> Ask:
    told = (
        f"Here is a part of {chunk.where}:\n{fenced(chunk.text)}\n\n"
        f"Write {each} questions that this part alone answers, as somebody would ask them who has "
        "not read it. For each: the question; a short answer; its keywords, one to four words or "
        "numbers that a right answer must hold; and as evidence the exact words of the part that "
        "say so, copied letter by letter.\nReply with JSON alone: "
        '{"pairs": [{"question": "...", "answer": "...", "keywords": ["..."], "evidence": "..."}]}'
    )
    return Ask(
        (Message("user", told),), temperature=TEMPERATURE, max_tokens=160 * each, schema=_SCHEMA
    )


def _row(chunk: Chunk, pair: Any, coverage: Coverage, door: Door) -> dict[str, Any] | None:
    """A pair that holds, or None; why not is counted."""
    reason = _wrong(chunk, pair)
    if not reason and not door.lets_in(pair["question"]):
        reason = "asked before"
    if reason:
        coverage.dropped[reason] += 1
        return None
    return {
        "question": pair["question"].strip(),
        "answer": pair["answer"].strip(),
        "answer_keywords": [word.strip() for word in pair["keywords"]],
        "evidence": pair["evidence"].strip(),
    }


def _wrong(chunk: Chunk, pair: Any) -> str:
    """Why a pair does not hold; empty where it does."""
    texts = (
        [pair.get(name) for name in ("question", "answer", "evidence")]
        if isinstance(pair, dict)
        else []
    )
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        return "a field is missing"
    words = pair.get("keywords")
    if not isinstance(words, list) or not words:
        return "no keywords"
    if not all(isinstance(word, str) and plain_words(word) for word in words):
        return "no keywords"
    text, evidence, answer = map(plain_words, (chunk.text, pair["evidence"], pair["answer"]))
    if not evidence or not _holds(text, evidence):
        return "the evidence is not in the text"
    if not all(_holds(text, plain_words(word)) for word in words):
        return "a keyword is not in the text"
    if not all(_holds(answer, plain_words(word)) for word in words):
        return "a keyword is not in the answer"
    turns = (Message("user", pair["question"]), Message("assistant", pair["answer"]))
    return next((fault.partition(":")[0] for fault in text_faults(turns)), "")


def _holds(text: str, words: str) -> bool:
    """Whether whole words stand in a text, side by side."""
    return f" {words} " in f" {text} "
