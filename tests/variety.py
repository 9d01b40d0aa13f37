"""How varied texts are: repeated word 4-grams, shared sentence skeletons, near-duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"\d+|[a-z]+(?:['-][a-z]+)*", text.lower())


FUNCTION_WORDS = {
    *words(
        """
        a an the this that these those my your his her its our their i you he she it we they me him
        us them who whom whose which what where when why how and or but so yet for nor because
        although though if unless since while until before after as than whenever wherever however
        not never no nobody somebody everybody everyone everything nothing every each all both any
        some only am is are was were be been being do does did done have has had will would can
        could may might must shall should cannot of in on at by to from with without into onto over
        under up down out off through across behind between beside near against around during past
        along about above below inside outside toward towards there here again still already too
        now then very don't doesn't didn't won't can't couldn't shouldn't haven't hasn't isn't
        aren't weren't wasn't
        """
    )
}


def grams(text: str, n: int = 4) -> list[tuple[str, ...]]:
    """Every run of `n` words."""
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def distinct_4grams(texts: Sequence[str]) -> float:
    """Distinct word 4-grams over all word 4-grams: 1.0 when none comes twice."""
    found = [gram for text in texts for gram in grams(text)]
    return len(set(found)) / len(found)


def skeleton(text: str) -> str:
    """Function words and end marks, with one blank for each run of other words.

    "The kettle screams like a gull, and the cat hides." -> "the _ a _ , and the _ ."
    """
    blanked = [
        token if token in FUNCTION_WORDS or token in ",.?!" else "_"
        for token in re.findall(r"\d+|[a-z]+(?:['-][a-z]+)*|[,.?!]", text.lower())
    ]
    return re.sub(r"_(?: _)+", "_", " ".join(blanked))


def commonest_skeleton(texts: Sequence[str]) -> tuple[str, float]:
    """The skeleton that most texts share, and the share of texts that have it."""
    [(pattern, count)] = Counter(map(skeleton, texts)).most_common(1)
    return pattern, count / len(texts)


def nearest_pair(left: Sequence[str], right: Sequence[str]) -> tuple[float, str, str]:
    """The two texts, one from each side, with the highest 4-gram Jaccard overlap."""
    left_grams = [(text, set(grams(text))) for text in left]
    right_grams = [(text, set(grams(text))) for text in right]
    return max(
        (len(a & b) / max(1, len(a | b)), x, y) for x, a in left_grams for y, b in right_grams
    )
