"""What is known of every sample while data is prepared: a few numbers, its side, the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retone.batch import EncodedRow
from retone.chat_template import RowRejected, TrainOn
from retone.conversation import Conversation
from retone.data.checks import KEPT_EXAMPLES, Ledger, Template, encode_each
from retone.data.findings import RowHits
from retone.data.mixing import Flags, Groups, Hashes, held_out, touching
from retone.data.spool import Spool

SPLITS = ("train", "validation", "test")
TOLD_EVERY = 1000  # rows between two calls of `tick`

Tick = Callable[[str, int, int, str], None]  # what, done, total, detail


@dataclass
class SampleTable:
    """A few numbers of every sample, and where it stands.

    Attributes:
        spool: the samples; the arrays below have one entry for each.
        ledgers: of the test sources, then of the training sources.
        tests: number of test sources.
        notes: what was taken for granted about files.
        hits: what is wrong with single rows.
        keys, questions: `duplicates.content_key` and `question_key`.
        topics: hashes of the values of `data.split_by`, or the keys.
        settings, answers: `duplicates.setting_key` and `answer_key`.
        words: words of the answer, or of a document.
        sources: index into the ledgers.
        chats: conversations, not documents.
        text: the task is plain text, and documents are tested on; otherwise conversations are.
        likes: equal for samples that repeat each other; each its own until that is known.
        sides: index into SPLITS, or -1 for a sample that is dropped.
    """

    spool: Spool
    ledgers: list[Ledger]
    tests: int
    notes: list[str]
    hits: RowHits
    keys: Hashes
    questions: Hashes
    topics: Hashes
    settings: Hashes
    answers: Hashes
    words: NDArray[np.uint32]
    sources: NDArray[np.uint32]
    chats: Flags
    text: bool = field(init=False, default=False)
    likes: Groups = field(init=False)
    sides: NDArray[np.int8] = field(init=False)

    def __post_init__(self) -> None:
        self.sides = np.where(self.sources < self.tests, 2, 0).astype(np.int8)
        self.likes = np.arange(len(self.keys), dtype=np.int32)

    def on(self, split: str) -> Flags:
        """The samples of a split."""
        return np.equal(self.sides, SPLITS.index(split))

    def read(self, source: int) -> int:
        """Samples read of a source: those that are used and those that were dropped."""
        used = int(((self.sides >= 0) & (self.sources == source)).sum())
        return used + self.ledgers[source].dropped.total()

    def drop(self, which: Flags, reason: str, detail: str) -> None:
        """Leave samples out and account for them."""
        self.sides[which] = -1
        for at, ledger in enumerate(self.ledgers):
            mine = np.flatnonzero(which & (self.sources == at))
            if not len(mine):
                continue
            ledger.dropped[reason] += len(mine)
            shown = self.spool.samples(mine[:KEPT_EXAMPLES].tolist())
            ledger.examples[reason] = [f"{s.source}, row {s.row}: {detail}" for s in shown]

    def choose_tests(self, task: str) -> None:
        """Drop the test samples that cannot be tested on; auto is text where no chat is trained."""
        tests, chats = self.on("test"), self.chats
        answered = (chats & self.on("train")).any() or (tests.any() and chats[tests].all())
        self.text = task == "text" or (task == "auto" and not bool(answered))
        unfit = self.on("test") & (self.chats if self.text else ~self.chats)
        if self.text:
            self.drop(unfit, "not-plain-text", "the other rows are plain text")
        else:
            self.drop(unfit, "not-a-conversation", "plain text has no answer to test")

    def hold_out(self, split: str, fraction: float, rank: Hashes, groups: Groups) -> None:
        """Move a share of the training samples, whole groups, to another split.

        What repeats a held-out sample in another group is dropped.
        """
        fit = (self.chats != self.text) | (split == "validation")
        rest = np.flatnonzero(self.on("train") & fit)
        held = rest[held_out(rank[rest], groups[rest], fraction)]
        self.sides[held] = SPLITS.index(split)
        self.drop_touching(split)

    def drop_touching(self, split: str) -> None:
        """Drop the training samples that belong together with a sample of `split`."""
        near = touching(self.likes, self.on(split)) & self.on("train")
        self.drop(near, f"also-in-{split}", f"repeats a {split} row")

    def check_prompts(self, template: Template, limit: int) -> None:
        """Drop the test samples whose prompt, or text, the template or tokenizer cannot write."""
        rows = np.flatnonzero(self.on("test")).tolist()
        for index, sample in zip(rows, self.spool.samples(rows), strict=True):
            try:
                if isinstance(sample, Conversation):
                    template.render(sample.prompt, tools=sample.tools, add_generation_prompt=True)
                else:
                    template.encode_document(sample.text, limit)
            except RowRejected as rejected:
                self.sides[index] = -1
                self.ledgers[self.sources[index]].drop(rejected.reason, sample, rejected.detail)

    def encode(
        self, template: Template, limit: int, train_on: TrainOn, tick: Tick
    ) -> Iterator[tuple[int, list[EncodedRow]]]:
        """(number, encoded rows) of each training sample that can be encoded."""
        total, done = int(self.on("train").sum()), 0
        for at in range(self.tests, len(self.ledgers)):
            mine = np.flatnonzero(self.on("train") & (self.sources == at)).tolist()
            encoded = encode_each(
                self.spool.samples(mine), template, self.ledgers[at], limit, train_on
            )
            for index, rows in zip(mine, encoded, strict=True):
                if rows:
                    yield index, rows
                else:
                    self.sides[index] = -1
                done += 1
                if done % TOLD_EVERY == 0 or done == total:
                    tick("encoding", done, total, f"{done:,} rows")
