"""Rows that say the same, exactly or nearly, found without comparing all with all.

Candidates come from MinHash signatures over word 3-grams (Broder 1997, "On the resemblance and
containment of documents"; the signatures are made by `rensa`), cut into bands (locality-sensitive
hashing: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). Every candidate
is then verified by the exact Jaccard similarity, so that a hash never decides alone.

Two rows are near-duplicates when they have the same setting (system prompt, tools) and each turn of
one is nearly that of the other: rows that differ in a short answer are kept, however long their
common question is. Two rows belong together, so that no split may separate them, when they are
alike as a whole or ask the same. 3-grams that many rows share are the words of a template, tell
nothing and are not compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retone.conversation import Conversation
from retone.data.spool import Trainable

# Near-duplicates share nine tenths of their 3-grams in every turn. One changed word in a turn of
# fewer than 56 words is below that, so paraphrases and small variations stay.
SAME = 0.9
ALIKE = 0.7  # what belongs on one side of a split
PERMUTATIONS, BANDS = 80, 20  # finds 99.6 % of the pairs at 0.7, and all but 1e-9 of those at 0.9
# A 3-gram belongs to a template when more than this share of the rows has it, and so many rows.
TEMPLATE_SHARE, TEMPLATE_ROWS = 0.05, 10
LOOKED_AT = 2000  # rows that templates are found in
COMMON_QUESTION = 16  # a prompt that more rows share is an instruction: it joins none of them
KEPT_IN_BUCKET = 16  # rows of a bucket that later ones are compared with
COMPARED = 16  # candidates that a row is compared with
TOGETHER = 512  # rows whose signatures are made in one call

Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]
Read = Callable[[Iterable[int]], Iterator[Trainable]]  # ascending numbers -> samples
Progress = Callable[[int, int], None]

_CJK = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)  # written without spaces: one word each
_EDGE = zlib.crc32(b"\n")  # stands before the first and after the last word of a turn
_MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


@dataclass(frozen=True)
class Repeats:
    """What was found among rows (arrays of one entry a row).

    Attributes:
        dropped: the row repeats one that is kept.
        near: the row is dropped, and is not exactly the one that is kept.
        groups: int32, equal for rows that belong together.
    """

    dropped: Flags
    near: Flags
    groups: NDArray[np.int32]


_END = ".!?\N{HORIZONTAL ELLIPSIS}\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH EXCLAMATION MARK} "


def content_key(sample: Trainable) -> int:
    """A 64-bit hash of everything that is said; equal for equal samples wherever they stand."""
    setting, turns = spoken(sample)
    return _key("\x1e".join((setting, *turns)))


def question_key(sample: Trainable) -> int:
    """A 64-bit hash of what is asked, without regard to case and spacing."""
    turns = sample.prompt if isinstance(sample, Conversation) else ()
    said = [" ".join(turn.content.casefold().split()) for turn in turns if turn.role != "system"]
    return _key("\x1e".join(said)) if said else content_key(sample)


def answer_key(sample: Trainable) -> int:
    """A 64-bit hash of the last answer, without regard to case, spacing and the end's punctuation.

    Its tool calls belong to it. That of a document is its content key.
    """
    if not isinstance(sample, Conversation):
        return content_key(sample)
    calls = sample.messages[-1].tool_calls if sample.messages else ()
    called = json.dumps(calls, sort_keys=True) if calls else ""
    return _key(" ".join(sample.answer.casefold().split()).rstrip(_END) + called)


def setting_key(sample: Trainable) -> int:
    """A 64-bit hash of the system prompt and the tools."""
    return _key(spoken(sample)[0])


def find_repeats(
    keys: Hashes,
    questions: Hashes,
    order: Sequence[int] | NDArray[Any],
    fixed: Flags,
    read: Read,
    *,
    near: bool,
    tick: Progress = lambda done, total: None,
) -> Repeats:
    """Which rows repeat others, and which belong together.

    Args:
        keys, questions: `content_key` and `question_key` of each row.
        order: all row numbers, the preferred ones first: of two equal rows the later is dropped.
        fixed: rows that are never dropped.
        read: gives the samples of ascending row numbers.
        near: False looks at equal rows only, and joins only those.
        tick: called with (rows done, all rows).
    """
    place = np.empty(len(keys), dtype=np.int64)
    place[order] = np.arange(len(keys))
    first = _first_of_each(keys, place)
    dropped = (first != np.arange(len(keys))) & ~fixed
    edges = [np.stack([np.arange(len(keys)), first])]
    found = np.zeros(len(keys), dtype=np.bool_)
    if near:
        edges.append(_same_question(questions, place))
        distinct = np.flatnonzero(first == np.arange(len(keys)))
        comparison = _Comparison(keys, distinct, read, tick)
        pairs, found = comparison.run(order, fixed)
        edges.append(pairs)
    linked = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(linked.shape[1], dtype=np.int8), tuple(linked)), (len(keys),) * 2)
    _, groups = connected_components(graph, directed=False)
    return Repeats(dropped | found, found & ~dropped, groups)


def word_grams(turns: Iterable[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashed word 3-grams of all turns one after another, and where those of each turn begin.

    A turn of n words has n of them: it is taken with its edges, so that a word alone is one too.
    Case and punctuation count, for they are what a style may consist of.
    """
    words: list[int] = []
    counts = [0]
    for turn in turns:
        split = (turn if turn.isascii() else _CJK.sub(r" \g<0> ", turn)).split()
        words.append(_EDGE)
        words.extend(map(_word_hash, split))
        words.append(_EDGE)
        counts.append(len(split))
    starts = np.cumsum(counts)
    if len(words) < 3:
        return np.empty(0, dtype=np.uint64), starts
    hashed = np.array(words, dtype=np.uint64)
    grams = hashed[:-2] * _MIXERS[0] ^ hashed[1:-1] * _MIXERS[1] ^ hashed[2:] * _MIXERS[2]
    inside = np.ones(len(grams), dtype=np.bool_)
    ends = np.cumsum(
        np.array(counts[1:-1], dtype=np.int64) + 2
    )  # grams that begin before an edge and end after
    inside[ends - 1] = inside[ends - 2] = False
    return grams[inside], starts


class _Text(NamedTuple):
    """A row ready to be compared: 3-grams are sorted, distinct, and none is a template's."""

    setting: str
    turns: tuple[str, ...]
    grams: tuple[Hashes, ...]
    whole: Hashes


class _Comparison:
    """Finds and verifies the near-duplicates among `rows`, no two of which are equal."""

    def __init__(self, keys: Hashes, rows: NDArray[Any], read: Read, tick: Progress) -> None:
        self._rows, self._read, self._tick = rows, read, tick
        self._text = lru_cache(maxsize=2048)(self._text_of)
        looked_at = np.sort(rows[np.argsort(keys[rows])[:LOOKED_AT]])
        self._template = _template_grams(read(looked_at.tolist()))

    def run(self, order: Any, fixed: Flags) -> tuple[NDArray[np.int64], Flags]:
        """Pairs [2, n] of rows that are alike, and which rows to drop as near-duplicates."""
        buckets = self._buckets(len(fixed))
        members: dict[int, list[int]] = {}
        dropped = np.zeros(len(fixed), dtype=np.bool_)
        pairs: list[tuple[int, int]] = []
        for row in np.asarray(order).tolist():
            mine = buckets.get(row)
            if mine is None:
                continue
            shared: Counter[int] = Counter()
            for bucket in mine:
                shared.update(members.get(bucket, ()))
            for other, _ in shared.most_common(COMPARED):
                same, alike = _compare(self._text(row), self._text(other))
                if alike:
                    pairs.append((row, other))
                if same and not fixed[row]:
                    dropped[row] = True
                    break
            else:
                for bucket in mine:
                    kept = members.setdefault(bucket, [])
                    if len(kept) < KEPT_IN_BUCKET:
                        kept.append(row)
        return np.array(pairs, dtype=np.int64).reshape(-1, 2).T, dropped

    def _buckets(self, count: int) -> _Buckets:
        """The buckets of each row that shares one with another."""
        bands = np.empty((len(self._rows), BANDS), dtype=np.uint32)
        empty = np.zeros(len(self._rows), dtype=np.bool_)
        samples = self._read(self._rows.tolist())
        done = 0
        while together := list(islice(samples, TOGETHER)):
            end = done + len(together)
            bands[done:end], empty[done:end] = self._signatures(together)
            done = end
            self._tick(done, len(self._rows))
        return _Buckets(bands, empty, self._rows, count)

    def _signatures(self, samples: Sequence[Trainable]) -> tuple[NDArray[np.uint32], Flags]:
        """Band hashes [rows, BANDS], and which rows have no 3-gram to be told by."""
        said = [spoken(sample)[1] for sample in samples]
        grams, starts = word_grams(turn for turns in said for turn in turns)
        rows = starts[np.cumsum([0, *map(len, said)])]
        telling = ~_is_in(grams, self._template)
        rows = np.concatenate([[0], np.cumsum(telling)])[rows]
        offsets = rows.astype(np.uint64)
        made = RMinHash.digest_matrix_from_flat_token_hashes(
            grams[telling], offsets, PERMUTATIONS, 1
        )
        digests = np.array(made.to_rows(), dtype=np.uint64).reshape(len(samples), BANDS, -1)
        bands = np.zeros((len(samples), BANDS), dtype=np.uint64)
        for column in range(digests.shape[2]):
            bands = (bands ^ digests[:, :, column]) * _MIXERS[0]
        return (bands >> np.uint64(32)).astype(np.uint32), np.diff(rows) == 0

    def _text_of(self, row: int) -> _Text:
        (sample,) = self._read([row])
        setting, turns = spoken(sample)
        grams, starts = word_grams(turns)
        parts = np.split(grams, starts[1:-1])
        telling = [np.unique(part[~_is_in(part, self._template)]) for part in parts]
        return _Text(setting, turns, tuple(telling), np.unique(np.concatenate(telling)))


class _Buckets:
    """Which rows share a band: row -> numbers of its buckets, in flat arrays."""

    def __init__(
        self, bands: NDArray[np.uint32], empty: Flags, rows: NDArray[Any], count: int
    ) -> None:
        owners: list[NDArray[np.int32]] = []
        names: list[NDArray[np.int32]] = []
        total = 0
        for band in bands.T:
            by_hash = np.argsort(band, kind="stable")
            by_hash = by_hash[~empty[by_hash]]
            if not len(by_hash):
                continue
            new = np.concatenate([[True], np.diff(band[by_hash]) != 0])
            bucket = np.cumsum(new) - 1
            shared = np.bincount(bucket)[bucket] > 1
            owners.append(by_hash[shared].astype(np.int32))
            names.append((bucket[shared] + total).astype(np.int32))
            total += len(band)
        owner = np.concatenate([*owners, np.empty(0, dtype=np.int32)])
        by_owner = np.argsort(owner, kind="stable")
        self._names = np.concatenate([*names, np.empty(0, dtype=np.int32)])[by_owner]
        sizes = np.zeros(count, dtype=np.int64)
        sizes[rows] = np.bincount(owner, minlength=len(rows))
        self._ends = np.cumsum(sizes)
        self._sizes = sizes

    def get(self, row: int) -> list[int] | None:
        """The buckets of a row, or None where it shares none."""
        if not self._sizes[row]:
            return None
        end = self._ends[row]
        found: list[int] = self._names[end - self._sizes[row] : end].tolist()
        return found


def _compare(one: _Text, other: _Text) -> tuple[bool, bool]:
    """(nearly the same in every turn, alike as a whole)."""
    alike = _jaccard(one.whole, other.whole) >= ALIKE
    if not alike or one.setting != other.setting or len(one.turns) != len(other.turns):
        return False, alike
    turns = zip(one.turns, other.turns, one.grams, other.grams, strict=True)
    return all(a == b or _jaccard(x, y) >= SAME for a, b, x, y in turns), alike


def _jaccard(one: Hashes, other: Hashes) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 0.0


def _template_grams(samples: Iterable[Trainable]) -> Hashes:
    """The sorted 3-grams that so many of the samples have that they tell none apart."""
    each = [np.unique(word_grams(spoken(sample)[1])[0]) for sample in samples]
    grams, counts = np.unique(np.concatenate([*each, np.empty(0, np.uint64)]), return_counts=True)
    return grams[counts > max(TEMPLATE_ROWS, TEMPLATE_SHARE * len(each))]


def _is_in(grams: Hashes, known: Hashes) -> Flags:
    """Which of `grams` are among the sorted `known` ones."""
    if not len(known):
        return np.zeros(len(grams), dtype=np.bool_)
    place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
    return np.equal(known[place], grams)


def _first_of_each(keys: Hashes, place: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row the number of the foremost row that has the same key."""
    by_key = np.lexsort((place, keys))
    new = np.concatenate([[True], np.diff(keys[by_key]) != 0]) if len(keys) else np.empty(0, bool)
    first = np.empty(len(keys), dtype=np.int64)
    first[by_key] = by_key[np.flatnonzero(new)][np.cumsum(new) - 1] if len(keys) else 0
    return first


def _same_question(questions: Hashes, place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs [2, n] of rows that ask the same, where few enough do."""
    first = _first_of_each(questions, place)
    asked = np.bincount(first, minlength=len(first))[first]
    joined = np.flatnonzero(asked <= COMMON_QUESTION)
    return np.stack([joined, first[joined]])


def spoken(sample: Trainable) -> tuple[str, tuple[str, ...]]:
    """The setting (system prompt and tools) and the texts of the other turns."""
    if not isinstance(sample, Conversation):
        return "", (sample.text,)
    setting = json.dumps(sample.tools, sort_keys=True) if sample.tools else ""
    turns = []
    for message in sample.messages:
        text = message.content
        if message.thinking or message.tool_calls:
            calls = json.dumps(message.tool_calls, sort_keys=True)
            text = f"{message.thinking}\n{text}\n{calls}"
        if message.role == "system":
            setting += text
        else:
            turns.append(f"{message.role} {text}")
    return setting, tuple(turns)


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))
