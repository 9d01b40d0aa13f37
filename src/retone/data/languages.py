"""Which languages the answers are in, told by lingua from a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from retone.conversation import Conversation
from retone.data.findings import KEPT_ROWS, Finding, excerpt, finding
from retone.data.sample_table import SampleTable

LOOKED_AT = 500  # rows, those of the lowest content hashes: each takes lingua milliseconds
LETTERS = 40  # an answer with fewer is too short to tell
READ = 200  # characters of an answer that are looked at
SURE = 0.9  # lingua's confidence
MINORITY = 0.01  # of the rows looked at; fewer in one language are slips of the detector


def language_findings(table: SampleTable) -> Iterator[Finding]:
    """Answers in another language than most; a note where lingua is not installed."""
    mine = np.flatnonzero(table.on("train") & table.chats)
    mine = np.sort(mine[np.argsort(table.keys[mine])[:LOOKED_AT]])
    told: list[tuple[str, Conversation]] = []
    try:
        for sample in table.spool.samples(mine.tolist()):
            assert isinstance(sample, Conversation)
            language = language_of(sample.answer)
            if language:
                told.append((language, sample))
    except ImportError:
        yield finding("not-checked", len(mine), detail="the language of the answers")
        return
    counts = Counter(language for language, _ in told)
    likely = [name for name, rows in counts.most_common() if rows >= max(2, MINORITY * len(told))]
    others = [row for language, row in told if language in likely[1:]]
    if others:
        shares = ", ".join(f"{name} {counts[name]}" for name in likely[:4])
        detail = f"of {len(told):,} that were looked at: {shares}"
        rows = [f"{row.where}: {excerpt(row.answer)}" for row in others[:KEPT_ROWS]]
        yield finding("language-mix", len(others), rows, detail)


def language_of(text: str) -> str:
    """English name of the language of `text`; empty where that is not clear.

    Raises ImportError without lingua.
    """
    prose = text[:READ]
    if sum(map(str.isalpha, prose)) < LETTERS or "```" in prose:
        return ""
    (best, *_) = _detector().compute_language_confidence_values(prose)
    return str(best.language.name.title()) if best.value >= SURE else ""


def language_names() -> list[str]:
    """English names of the languages that are told apart. Raises ImportError without lingua."""
    from lingua import Language

    return sorted(str(language.name.title()) for language in Language.all_spoken_ones())


@lru_cache(maxsize=1)
def _detector() -> Any:
    """Lingua's detector for all its languages that are spoken; its quick models are enough.

    The models are loaded as they are needed (lingua, github.com/pemistahl/lingua-py).
    """
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_all_spoken_languages().with_low_accuracy_mode().build()
