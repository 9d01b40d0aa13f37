"""The prompted baseline's style instruction, written from the training rows where none is given.

What a careful person would write into a system prompt instead of training: the task, the words that
mark the style, the usual length, and a few real examples. Deterministic: the same rows give the
same instruction.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from retone.conversation import Conversation

EXAMPLES = 4
MARKERS = 8
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def written_instruction(rows: Sequence[Conversation], system: str | None) -> str:
    """A system prompt that describes how the answers of `rows` are written.

    Without rows (a model trained on plain text) it is `system` alone.
    """
    parts = [system or "Answer the user."]
    if not rows:
        return parts[0]
    lengths = sorted(len(row.answer.split()) for row in rows)
    markers = style_markers(rows)
    if markers:
        parts.append(f"Words that are typical of the answers: {', '.join(markers)}.")
    parts.append(f"Answers have about {lengths[len(lengths) // 2]} words.")
    parts.append("Write the answer alone, without comments. Examples:")
    examples = [f"User: {row.question}\nAnswer: {row.answer}" for row in typical(rows, EXAMPLES)]
    return " ".join(parts) + "\n" + "\n".join(examples)


def style_markers(rows: Sequence[Conversation], count: int = MARKERS) -> list[str]:
    """Words that answers use far more than prompts, by the z-score of their log odds.

    Monroe, Colaresi and Quinn 2008 (Political Analysis 16:372), with a prior of one count a word.
    """
    said = Counter(word for row in rows for word in _words(row.question))
    answered = Counter(word for row in rows for word in _words(row.answer))
    total_said, total_answered = sum(said.values()), sum(answered.values())
    scores = {}
    for word, times in answered.items():
        a, b = times + 1, said[word] + 1
        odds = math.log(a / (total_answered + 1)) - math.log(b / (total_said + 1))
        scores[word] = odds / math.sqrt(1 / a + 1 / b)
    # Above 1.96 a word is more frequent by more than chance.
    marked = sorted((word for word in scores if scores[word] > 1.96), key=lambda w: -scores[w])
    return marked[:count]


def typical(rows: Sequence[Conversation], count: int) -> list[Conversation]:
    """Rows of middling length, spread over the file."""
    ranked = sorted(rows, key=lambda row: (len(row.answer), row.answer))
    middle = ranked[len(ranked) // 4 : max(count, 3 * len(ranked) // 4)]
    stride = max(1, len(middle) // count)
    return middle[::stride][:count]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
