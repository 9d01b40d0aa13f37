"""Leaks planted in real data: copies of test rows with words replaced, among the training rows.

Words are replaced at random places by random words of the file's vocabulary. Twenty of them are a
tenth of a long row and half of one of forty words. Some rows that nobody planted do repeat a test
row: they are counted by code, and count as false alarms all the same.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest

from record import record
from retone.config import SourceSection
from retone.conversation import Conversation, Message
from retone.data.formats import LOOKED_AT, convert, detect_shape
from retone.data.leakage import LeakIndex, Match
from retone.data.sources import BadRows, read_items

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHANGED = (0, 1, 5, 20)  # words replaced in each planted row
TESTED = 200  # rows planted, or a third of those that are long enough
SEED = 0
ROWS, TEST_ROWS, LENGTH = 100_000, 10_000, 450  # of the speed test: rows, rows, words
LONG, SHORT = (40, 100_000), (8, 39)  # words of a row that is planted


@dataclass(frozen=True)
class File:
    """A file of real rows, and how long those are that are planted."""

    path: str
    words: tuple[int, int] = LONG
    columns: dict[str, str] = field(default_factory=dict)


# The rows of other files repeat each other already (tool calls, identities, theory of mind), so
# that nobody could say which alarm is false.
FILES = (
    File("instruct/alpaca_en_demo.json"),
    File("instruct/seed_tasks.jsonl"),
    File("qa/ARC-Easy.train.json"),
    File("style/gpteacher_roleplay.json"),
    File(
        "style/public_kjv_bbe_web_ylt_2000.jsonl",
        columns={"prompt": "kjv", "completion": "bbe"},
    ),
    File("qa/NQ-open.dev.jsonl", SHORT),
    File("instruct/rasbt/instruction-data.json", SHORT),
    File("style/yoda_sentences.csv", SHORT, {"prompt": "sentence", "completion": "translation"}),
    File("style/filters_styles_720.jsonl", SHORT, {"prompt": "plain", "completion": "pirate"}),
)


def read(file: File) -> list[Conversation]:
    """All rows of a file."""
    source = SourceSection(path=str(SHARED / file.path), columns=file.columns)
    bad = BadRows()
    items = read_items(source, bad)
    first = list(islice(items, LOOKED_AT))
    shape = detect_shape([item.values for item in first], source, source.path)
    rows = convert(chain(first, items), shape, system="", values={}, bad=bad)
    return [row for row in rows if isinstance(row, Conversation)]


def words(row: Conversation) -> list[str]:
    return [word for message in row.messages for word in message.content.split()]


def with_changes(row: Conversation, count: int, vocabulary: list[str], seed: int) -> Conversation:
    """The row with so many of its words replaced; spaces and lines stay."""
    rng = random.Random(seed)
    parts = [re.split(r"(\s+)", message.content) for message in row.messages]
    places = [
        (at, n) for at, part in enumerate(parts) for n, word in enumerate(part) if word.strip()
    ]
    for at, n in rng.sample(places, min(count, len(places))):
        parts[at][n] = next(word for word in rng.sample(vocabulary, 2) if word != parts[at][n])
    turns = zip(row.messages, parts, strict=True)
    return replace(row, messages=tuple(replace(m, content="".join(part)) for m, part in turns))


def planted(file: File) -> dict[str, Any]:
    """Recall and precision on one file by number of changed words, and the alarms without any."""
    rows = read(file)
    random.Random(SEED).shuffle(rows)
    least, most = file.words
    fitting = [row for row in rows if least <= len(words(row)) <= most]
    tests = fitting[: min(TESTED, len(fitting) // 3)]
    chosen = {row.row for row in tests}
    training = [row for row in rows if row.row not in chosen]
    vocabulary = sorted({word for row in rows for word in words(row)})
    index = LeakIndex(tests)
    by_changed = {}
    for count in CHANGED:
        copies = [with_changes(row, count, vocabulary, row.row) for row in tests]
        matches = list(index.search([*training, *copies]))
        by_changed[str(count)] = judged(matches[: len(training)], matches[len(training) :], tests)
    alarms = Counter(match.code for match in index.search(training) if match is not None)
    lengths = {"least": least, "most": max(len(words(row)) for row in tests)}
    sizes = {"training": len(training), "test": len(tests), "words": lengths}
    return {"file": file.path, **sizes, "changed_words": by_changed, "not_planted": dict(alarms)}


def judged(
    others: list[Match | None], copies: list[Match | None], tests: list[Conversation]
) -> dict[str, float | None]:
    """Shares of the copies that are found as repeats of their own row, and of true alarms."""
    own = [
        match if match is not None and match.where == row.where else None
        for match, row in zip(copies, tests, strict=True)
    ]
    leaks = sum(match is not None and match.code == "leak" for match in own)
    found = sum(match is not None for match in own)
    leak_alarms = sum(match is not None and match.code == "leak" for match in others)
    alarms = sum(match is not None for match in others)
    return {
        "leak_recall": round(leaks / len(tests), 4),
        "reported": round(found / len(tests), 4),
        "leak_precision": round(leaks / (leaks + leak_alarms), 4) if leaks + leak_alarms else None,
        "report_precision": round(found / (found + alarms), 4) if found + alarms else None,
    }


def speed() -> dict[str, float]:
    """Seconds of one thread, for rows of pieces of real text: they share most of their 3-grams."""
    text = [word for row in read(FILES[3]) for word in words(row)]
    rng = random.Random(SEED)

    def row(number: int) -> Conversation:
        starts = [rng.randrange(len(text) - 10) for _ in range(LENGTH // 10)]
        said = [" ".join(text[start : start + 10]) for start in starts]
        turns = Message("user", " ".join(said[:9])), Message("assistant", " ".join(said[9:]))
        return Conversation(turns, "made up", number)

    tests = list(map(row, range(TEST_ROWS)))
    started = time.process_time()
    index = LeakIndex(tests)
    built = time.process_time()
    made = 0.0  # time in which rows are made up is none of the search's

    def rows() -> Iterator[Conversation]:
        nonlocal made
        for number in range(ROWS):
            before = time.process_time()
            sample = row(number)
            made += time.process_time() - before
            yield sample

    found = sum(match is not None for match in index.search(rows()))
    searched = time.process_time() - built - made
    return {
        "training_rows": ROWS,
        "test_rows": TEST_ROWS,
        "words": LENGTH,
        "index_seconds": round(built - started, 1),
        "search_seconds": round(searched, 1),
        "found": found,
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_leakage() -> None:
    files = [planted(file) for file in FILES]
    long = [found for file, found in zip(FILES, files, strict=True) if file.words == LONG]
    rows = sum(found["test"] for found in long)
    rewritten = sum(found["test"] * found["changed_words"]["20"]["reported"] for found in long)
    together = {"rows": rows, "reported_of_20_changed": round(rewritten / rows, 4)}
    named = {found["file"]: {key: found[key] for key in found if key != "file"} for found in files}
    record("leakage", {"seed": SEED, "files": named, "together": together, "speed": speed()})
    for found in files:
        by_changed = found["changed_words"]
        assert by_changed["0"]["leak_recall"] == 1, found["file"]
        assert by_changed["1"]["reported"] >= 0.9, found["file"]
        if found not in long:  # one word of ten may be all that tells a row: see the alarms
            continue
        assert by_changed["1"]["leak_recall"] == 1, found["file"]
        assert by_changed["5"]["leak_recall"] >= 0.95, found["file"]
        assert by_changed["20"]["reported"] >= 0.85, found["file"]
        precision = [by_changed[count]["leak_precision"] for count in ("0", "1", "5")]
        assert min(precision) >= 0.95, found["file"]
    assert together["reported_of_20_changed"] >= 0.9
