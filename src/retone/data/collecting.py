"""Reading all sources of a recipe: samples into a file, and a few numbers of each into memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from retone.config import DataSection, SourceSection
from retone.conversation import Conversation, Preference
from retone.data.checks import KEPT_EXAMPLES, Ledger
from retone.data.duplicates import answer_key, content_key, question_key, setting_key
from retone.data.findings import RowHits
from retone.data.formats import LOOKED_AT, Sample, convert, detect_shape
from retone.data.row_checks import row_faults
from retone.data.sample_table import TOLD_EVERY, SampleTable, Tick
from retone.data.sources import BadRows, read_items
from retone.data.spool import Spool, Trainable
from retone.errors import InputError, nearest


def read_samples(
    source: SourceSection, data: DataSection, bad: BadRows
) -> tuple[str, Iterator[Sample]]:
    """The shape of a source in words, and its samples one by one.

    Rows that cannot be used are added to `bad`. Raises InputError as `read_items`, `detect_shape`
    and `convert` do.
    """
    items = read_items(source, bad)
    first = list(islice(items, LOOKED_AT))
    if not first:
        return "nothing but rows that cannot be read", iter(())
    shape = detect_shape([item.values for item in first], source, source.path)
    samples = convert(chain(first, items), shape, system=data.system, values=data.values, bad=bad)
    return f"{shape.name} ({shape.evidence})", samples


def as_trained(sample: Sample) -> Trainable | None:
    """What is trained of a sample: of a preference its chosen answer, or None without one."""
    if not isinstance(sample, Preference):
        return sample
    if sample.chosen is None:
        return None
    messages = (*sample.prompt, sample.chosen)
    return Conversation(messages, sample.source, sample.row, sample.extra, sample.tools)


def collect_samples(data: DataSection, spool: Spool, tick: Tick) -> SampleTable:
    """Read every source into the spool; each row is checked by itself on the way.

    Raises:
        InputError: as `read_samples`; rows cannot be used and `data.bad_rows` is error (all of them
            are counted); no row has the column `data.split_by`.
    """
    tests = data.sources("test")
    ledgers: list[Ledger] = []
    facts = _Facts(data.split_by)
    bad = BadRows()
    for at, source in enumerate([*tests, *data.sources("train")]):
        ledger = Ledger(source.path)
        ledgers.append(ledger)
        for sample in _accounted(source, data, ledger, bad):
            spool.append(sample)
            facts.add(sample, at)
            if len(spool) % TOLD_EVERY == 0:
                tick("reading", 0, 1, f"{len(spool):,} rows")
    tick("reading", 1, 1, f"{len(spool):,} rows")
    if bad.count and data.bad_rows == "error":
        raise bad.problems()
    facts.require_column()
    return facts.table(spool, ledgers, len(tests), bad.notes)


class _Facts:
    """What is kept in memory of every sample: a few numbers; see `SampleTable`."""

    def __init__(self, split_by: str | None) -> None:
        self._split_by = split_by
        self._known: set[str] = set()
        self._keys, self._questions, self._topics = array("Q"), array("Q"), array("Q")
        self._settings, self._answers, self._words = array("Q"), array("Q"), array("I")
        self._sources, self._chats = array("I"), array("B")
        self._hits = RowHits()

    def add(self, sample: Trainable, source: int) -> None:
        """One more sample, of the source with this number."""
        key = content_key(sample)
        said = sample.answer if isinstance(sample, Conversation) else sample.text
        self._keys.append(key)
        self._questions.append(question_key(sample))
        self._topics.append(_topic(sample, self._split_by, key))
        self._settings.append(setting_key(sample))
        self._answers.append(answer_key(sample))
        self._words.append(len(said.split()))
        self._sources.append(source)
        self._chats.append(isinstance(sample, Conversation))
        for fault in row_faults(sample):
            self._hits.add(fault.code, f"{sample.source}, row {sample.row}", fault.shown)
        if self._split_by is not None and self._split_by not in self._known:
            self._known.update(sample.extra)

    def require_column(self) -> None:
        """InputError where no sample has the column of `data.split_by`."""
        if self._split_by is not None and self._split_by not in self._known:
            raise InputError(
                "no row has the column that data.split_by names",
                f"{self._split_by}{nearest(self._split_by, self._known)}; "
                f"there are {', '.join(sorted(self._known)) or 'no further columns'}",
                "--set data.split_by=COLUMN",
                "missing-column",
            )

    def table(
        self, spool: Spool, ledgers: list[Ledger], tests: int, notes: list[str]
    ) -> SampleTable:
        """All of them as arrays."""
        return SampleTable(
            spool,
            ledgers,
            tests,
            notes,
            self._hits,
            np.array(self._keys, np.uint64),
            np.array(self._questions, np.uint64),
            np.array(self._topics, np.uint64),
            np.array(self._settings, np.uint64),
            np.array(self._answers, np.uint64),
            np.array(self._words, np.uint32),
            np.array(self._sources, np.uint32),
            np.array(self._chats, np.bool_),
        )


def _accounted(
    source: SourceSection, data: DataSection, ledger: Ledger, bad: BadRows
) -> Iterator[Trainable]:
    """The samples of a source that can be trained or tested on; the others are counted."""
    mine = BadRows()
    ledger.shape, samples = read_samples(source, data, mine)
    for sample in samples:
        trained = as_trained(sample)
        if trained is None:
            ledger.drop("rejected-only", sample, "no chosen answer")
        else:
            yield trained
    if mine.count:
        ledger.dropped["unusable"] = mine.count
        ledger.examples["unusable"] = list(mine.texts)
    bad.count += mine.count
    bad.texts += mine.texts[: max(0, KEPT_EXAMPLES - len(bad.texts))]
    bad.notes += [note for note in mine.notes if note not in bad.notes]


def _topic(sample: Trainable, column: str | None, key: int) -> int:
    """A hash of the sample's value in `column`; its own content hash where it has none."""
    if column is None or sample.extra.get(column) is None:
        return key
    value = json.dumps(sample.extra[column], sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
