"""From sources to encoded rows on disk, for one row or a million.

    read, convert -> drop what repeats -> sample -> hold out test rows -> encode -> cut to the
    proportions of the mixture -> hold out validation rows

Samples wait in a file; memory holds a few numbers of each. What it comes to is a folder:

    train.jsonl validation.jsonl test.jsonl     the samples, one JSON object a line
    encoded/                                    `EncodedStore` of training and validation rows
    train.npy validation.npy                    which of its rows, in which order
    ledger.json                                 what became of every sample of every source
    findings.json                               what is wrong with the rows, worst first
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retone.config import DataSection
from retone.data.checks import KEPT_EXAMPLES, Template
from retone.data.collecting import as_trained, collect_samples, read_samples
from retone.data.corpus_checks import corpus_findings
from retone.data.duplicates import find_repeats
from retone.data.findings import Finding, worst_first
from retone.data.mixing import Hashes, balanced, ranks, sampled
from retone.data.sample_table import SPLITS, SampleTable, Tick
from retone.data.sources import BadRows
from retone.data.spool import Spool, Trainable
from retone.data.store import EncodedStore, writing
from retone.errors import InputError
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

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with the rows, worst first."""
        return [Finding.from_json(each) for each in read_json(self.folder / "findings.json")]

    def require_all_read(self) -> None:
        """InputError that counts the rows that could not be read or converted."""
        bad = BadRows()
        for source in self.ledger["sources"]:
            bad.count += source["dropped"].get("unusable", 0)
            bad.texts += source["examples"].get("unusable", [])
        bad.texts = bad.texts[:KEPT_EXAMPLES]
        if bad.count:
            raise bad.problems()

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
        table = collect_samples(data, spool, tick)
    _require_training_rows(table)
    table.choose_tests(data.task)
    _drop_repeats(table, data, tick)
    _sample(table, data, seed)
    rank = ranks(table.keys, seed)
    groups = table.likes if data.split_by is None else table.topics
    if not data.sources("test"):
        table.hold_out("test", data.eval_fraction, rank, groups)
    table.check_prompts(template, limit)
    with writing(folder / "encoded") as writer:
        for index, rows in table.encode(template, limit, data.train_on, tick):
            for row in rows:
                writer.append(row, index)
    _balance(table, data, rank)
    table.hold_out("validation", data.validation_fraction, rank, groups)
    _require_training_rows(table)
    findings = corpus_findings(table, data, _against(data), tick)
    _write(table, data, folder, template.stop_ids)
    write_json(folder / "findings.json", [found.as_json() for found in worst_first(findings)])
    return PreparedData(folder)


def _against(data: DataSection) -> Iterator[Trainable]:
    """The rows of the files that `data.against` names; InputError where some cannot be read."""
    bad = BadRows()
    for source in data.sources("against"):
        _, samples = read_samples(source, data, bad)
        yield from filter(None, map(as_trained, samples))
    if bad.count:
        raise bad.problems()


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


def _write(table: SampleTable, data: DataSection, folder: Path, stop_ids: Collection[int]) -> None:
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
    ended = np.isin(store.last_trained, list(stop_ids))[trained]
    for at, ledger in enumerate(table.ledgers):
        mine = table.sources == at
        ledger.used = int((table.sides[mine] >= 0).sum())
        ledger.read = table.read(at)
        ledger.validated = int((table.sides[mine] == 1).sum())
        ledger.tested = int((table.sides[mine] == 2).sum())
        ledger.lengths = lengths[of_source == at].tolist()
        ledger.ended = int(ended[of_source == at].sum())
        ledger.trained = int(weighing[of_source == at].sum())
        ledger.masked = sum(ledger.lengths) - ledger.trained
    sources = [ledger.as_json() for ledger in table.ledgers]
    write_json(
        folder / "ledger.json",
        {"sources": [*sources[table.tests :], *sources[: table.tests]], "notes": table.notes,
         "text": table.text,
         "longest_answer": store.longest_answer, "longest_row": int(store.lengths.max())},
    )  # fmt: skip
    (folder / "samples.jsonl").unlink()
