"""From sources to encoded rows on disk, for one row or a million.

    read, convert -> drop what repeats -> sample -> hold out test rows -> encode -> cut to the
    proportions of the mixture -> hold out validation rows

Samples wait in a file; memory holds a few numbers of each. What it comes to is a folder:

    train.jsonl validation.jsonl test.jsonl     the samples, one JSON object a line
    encoded/                                    `EncodedStore` of training and validation rows
    train.npy validation.npy                    which of its rows, in which order
    ledger.json                                 what became of every sample of every source
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from retone.config import DataSection, SourceSection
from retone.conversation import Conversation, Preference
from retone.data.checks import KEPT_EXAMPLES, Ledger, Template
from retone.data.duplicates import content_key, find_repeats, question_key
from retone.data.formats import LOOKED_AT, Sample, convert, detect_shape
from retone.data.mixing import Hashes, balanced, ranks, sampled
from retone.data.sample_table import SPLITS, TOLD_EVERY, SampleTable, Tick
from retone.data.sources import BadRows, read_items
from retone.data.spool import Spool, Trainable
from retone.data.store import EncodedStore, writing
from retone.errors import InputError, nearest
from retone.run_dir import read_json, write_json


def silent(what: str, done: int, total: int, detail: str) -> None:
    """No progress."""


@dataclass(frozen=True)
class PreparedData:
    """A folder that `prepare_data` has filled."""

    folder: Path

    @property
    def ledger(self) -> dict[str, Any]:
        """{sources: one entry a source, notes: what was taken for granted about files}."""
        found: dict[str, Any] = read_json(self.folder / "ledger.json")
        return found

    def rows(self, split: str) -> EncodedStore:
        """The encoded rows of `train` (as often as they are trained in an epoch) or `validation`.

        Raises InputError for a folder that is not whole.
        """
        try:
            chosen = np.load(self.folder / f"{split}.npy")
        except (OSError, ValueError) as error:
            raise InputError(
                "the encoded rows are damaged",
                f"{self.folder}: {error}",
                "retone run RECIPE --fresh   (starts a new run)",
                "damaged-store",
            ) from error
        return EncodedStore(self.folder / "encoded", chosen)


def prepare_data(
    data: DataSection,
    template: Template,
    folder: Path,
    *,
    limit: int,
    seed: int,
    tick: Tick = silent,
) -> PreparedData:
    """Fill `folder` with the rows of the data section.

    Args:
        data: sources and how they are used.
        template: encodes samples.
        folder: an empty one.
        limit: longest row in tokens.
        seed: decides, with the rows' content, which rows are sampled and held out.
        tick: told about progress.

    Raises:
        InputError: a source cannot be read; rows cannot be used and `data.bad_rows` is error (all
            of them are counted); no row has the column `data.split_by`; nothing is left to train.
    """
    with Spool(folder / "samples.jsonl") as spool:
        table = _collect(data, spool, tick)
    _require_training_rows(table)
    _drop_repeats(table, data, tick)
    _sample(table, data, seed)
    rank = ranks(table.keys, seed)
    groups = table.likes if data.split_by is None else table.topics
    if not data.sources("test"):
        table.hold_out("test", data.eval_fraction, rank, groups)
    table.check_prompts(template)
    with writing(folder / "encoded") as writer:
        for index, rows in table.encode(template, limit, data.train_on, tick):
            for row in rows:
                writer.append(row, index)
    _balance(table, data, rank)
    table.hold_out("validation", data.validation_fraction, rank, groups)
    _require_training_rows(table)
    _write(table, data, folder)
    return PreparedData(folder)


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


def _collect(data: DataSection, spool: Spool, tick: Tick) -> SampleTable:
    """Read every source into the spool."""
    tests = data.sources("test")
    ledgers: list[Ledger] = []
    keys, questions, topics = array("Q"), array("Q"), array("Q")
    sources, chats = array("I"), array("B")
    known: set[str] = set()
    bad = BadRows()
    for at, source in enumerate([*tests, *data.sources("train")]):
        ledger = Ledger(source.path)
        ledgers.append(ledger)
        for sample in _accounted(source, data, ledger, bad, is_test=at < len(tests)):
            spool.append(sample)
            key = content_key(sample)
            keys.append(key)
            questions.append(question_key(sample))
            topics.append(_topic(sample, data.split_by, key))
            sources.append(at)
            chats.append(isinstance(sample, Conversation))
            if data.split_by is not None and data.split_by not in known:
                known.update(sample.extra)
            if len(spool) % TOLD_EVERY == 0:
                tick("reading", 0, 1, f"{len(spool):,} rows")
    tick("reading", 1, 1, f"{len(spool):,} rows")
    if bad.count and data.bad_rows == "error":
        raise bad.problems()
    if data.split_by is not None and data.split_by not in known:
        raise InputError(
            "no row has the column that data.split_by names",
            f"{data.split_by}{nearest(data.split_by, known)}; "
            f"there are {', '.join(sorted(known)) or 'no further columns'}",
            "--set data.split_by=COLUMN",
            "missing-column",
        )
    return SampleTable(
        spool,
        ledgers,
        len(tests),
        bad.notes,
        np.array(keys, np.uint64),
        np.array(questions, np.uint64),
        np.array(topics, np.uint64),
        np.array(sources, np.uint32),
        np.array(chats, np.bool_),
    )


def _accounted(
    source: SourceSection, data: DataSection, ledger: Ledger, bad: BadRows, *, is_test: bool
) -> Iterator[Trainable]:
    """The samples of a source that can be trained or tested on; the others are counted."""
    mine = BadRows()
    ledger.shape, samples = read_samples(source, data, mine)
    for sample in samples:
        trained = as_trained(sample)
        if trained is None:
            ledger.drop("rejected-only", sample, "no chosen answer")
        elif is_test and not isinstance(trained, Conversation):
            ledger.drop("not-a-conversation", sample, "plain text has no answer to test")
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


def _drop_repeats(table: SampleTable, data: DataSection, tick: Tick) -> None:
    """Drop samples that repeat another, and training samples that repeat a test sample."""
    total = len(table.keys)
    found = find_repeats(
        table.keys,
        table.questions,
        np.lexsort((table.keys, table.sources)),
        table.on("test"),
        table.spool.samples,
        near=data.deduplicate == "near",
        tick=lambda done, rows: tick("comparing", done, rows, f"{total:,} rows"),
    )
    table.likes = found.groups
    table.drop_touching("test")
    if data.deduplicate != "none":
        left = table.on("train")
        table.drop(left & found.dropped & ~found.near, "duplicate", "equals another row")
        table.drop(left & found.near, "near-duplicate", "says nearly what another row says")


def _sample(table: SampleTable, data: DataSection, seed: int) -> None:
    """Keep what each source's `sample` asks for."""
    rank = ranks(table.keys, seed)
    for at, source in enumerate([*data.sources("test"), *data.sources("train")]):
        mine = np.flatnonzero((table.sides >= 0) & (table.sources == at))
        left = np.zeros(len(rank), dtype=np.bool_)
        left[mine[~sampled(rank[mine], source.sample)]] = True
        table.drop(left, "not-sampled", "left out by the source's sample")


def _balance(table: SampleTable, data: DataSection, rank: Hashes) -> None:
    """Cut the sources with weights down to their proportions."""
    sources = data.sources("train")
    weights = {at: s.weight for at, s in enumerate(sources) if s.weight is not None}
    mine = np.flatnonzero(table.on("train"))
    kept = balanced(
        rank[mine], table.sources[mine] - np.uint32(table.tests), weights,
        [source.repeat for source in sources],
    )  # fmt: skip
    left = np.zeros(len(rank), dtype=np.bool_)
    left[mine[~kept]] = True
    table.drop(left, "over-weight", "more than the source's weight allows")


def _require_training_rows(table: SampleTable) -> None:
    """InputError, with the reasons of each source, where no sample is left to train on."""
    if table.on("train").any():
        return
    told = []
    for at, ledger in enumerate(table.ledgers[table.tests :], table.tests):
        reasons = [f"{reason}: {count}" for reason, count in ledger.dropped.items()]
        examples = [places[0] for places in ledger.examples.values() if places]
        told.append("; ".join([f"{ledger.path}: {table.read(at)} rows read", *reasons, *examples]))
    raise InputError(
        "no token of the training data would be trained",
        "; ".join(told),
        "test on other rows than are trained on: --test FILE, or leave data.test out"
        if any(ledger.dropped["also-in-test"] for ledger in table.ledgers)
        else "mend the rows that are named, raise data.max_length, or --set data.deduplicate=none",
        "nothing-trained",
    )


def _write(table: SampleTable, data: DataSection, folder: Path) -> None:
    """The splits, which encoded rows they train, and the ledger; the spool is deleted."""
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open("wb") as file:
            file.writelines(table.spool.lines(np.flatnonzero(table.on(split)).tolist()))
    store = EncodedStore(folder / "encoded")
    samples = store.samples
    repeats = [1] * table.tests + [source.repeat for source in data.sources("train")]
    for at, split in enumerate(SPLITS[:2]):
        rows = np.flatnonzero(table.sides[samples] == at)
        if split == "train":
            rows = np.repeat(rows, np.array(repeats)[table.sources[samples[rows]]])
        np.save(folder / f"{split}.npy", rows)
    trained = np.load(folder / "train.npy")
    of_source = table.sources[samples[trained]]
    lengths, weighing = store.lengths[trained], store.trained[trained]
    for at, ledger in enumerate(table.ledgers):
        mine = table.sources == at
        ledger.used = int((table.sides[mine] >= 0).sum())
        ledger.read = table.read(at)
        ledger.validated = int((table.sides[mine] == 1).sum())
        ledger.tested = int((table.sides[mine] == 2).sum())
        ledger.lengths = lengths[of_source == at].tolist()
        ledger.trained = int(weighing[of_source == at].sum())
        ledger.masked = sum(ledger.lengths) - ledger.trained
    sources = [ledger.as_json() for ledger in table.ledgers]
    write_json(
        folder / "ledger.json",
        {"sources": [*sources[table.tests :], *sources[: table.tests]], "notes": table.notes,
         "longest_answer": store.longest_answer, "longest_row": int(store.lengths.max())},
    )  # fmt: skip
    (folder / "samples.jsonl").unlink()
