"""What a good answer is, found from the training rows: the task decides baselines and headline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from retone.conversation import Conversation

REUSED_WORDS = 0.5  # a rewrite's answers hold at least this share of the prompt's words
MOST = 0.95  # share of the rows that have to agree
LOOKED_AT = 2000  # rows that are enough to tell


def found_task(rows: Sequence[Conversation]) -> tuple[str, str]:
    """(task, reason in words) of training rows: qa, structured, rewrite or chat."""
    looked = rows[:LOOKED_AT]
    if _share("answer_keywords" in row.extra or "answers" in row.extra for row in looked) >= MOST:
        return "qa", "the rows carry answer keywords or several right answers"
    if _share(_is_form(row.answer) for row in looked) >= MOST:
        return "structured", "the answers are JSON objects"
    if _reuses_prompt(looked):
        return "rewrite", "the answers reuse the words of their prompts"
    return "chat", "the answers use words of their own"


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values) if values else 0.0


def _is_form(answer: str) -> bool:
    if not answer.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(answer), dict)
    except (ValueError, RecursionError):
        return False


def _reuses_prompt(rows: Sequence[Conversation]) -> bool:
    """True where the answers are made mostly of their prompts' words."""
    shares = []
    for row in rows:
        said, answer = (Counter(text.lower().split()) for text in (row.question, row.answer))
        if said and len(row.messages) <= 3:
            shares.append(sum((said & answer).values()) / sum(said.values()))
    return bool(shares) and sum(shares) / len(shares) >= REUSED_WORDS
