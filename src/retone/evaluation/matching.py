"""What one answer has in common with one reference: words, keywords, fields."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from typing import Any

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces (SQuAD, Rajpurkar 2016)."""
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both read the same after SQuAD's normalisation, else 0.0."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the bags of normalised words, 0 to 1; a side without words: 1 when both are."""
    said, wanted = normalised(answer).split(), normalised(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def json_object(text: str) -> dict[str, Any] | None:
    """The text as a JSON object; None where it is anything else."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def equal_fields(given: dict[str, Any] | None, wanted: dict[str, Any]) -> float:
    """Share of the top-level fields of either side that both have with the same value, 0 to 1."""
    if given is None:
        return 0.0
    names = given.keys() | wanted.keys()
    same = [name for name in names if given.get(name, ...) == wanted.get(name, ...)]
    return len(same) / len(names) if names else 1.0


# Scripts written without spaces have no whole words to ask for: Thai, Lao, Burmese, Khmer, CJK.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def has_keyword(text: str, keyword: str) -> bool:
    """Whether `keyword` stands in `text` as whole words, in any case and spacing."""
    pattern = r"\s+".join(map(re.escape, _folded(keyword).split()))
    if not _UNSPACED.search(keyword):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.search(pattern, _folded(text)) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
