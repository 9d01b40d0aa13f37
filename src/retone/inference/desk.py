"""What the web app can ask for; a workflow gives it, so that the pages know nothing of files."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retone.inference.api import Served
from retone.inference.decoding import Row, adapter_of
from retone.inference.sampling import Messages, Sampling
from retone.inference.service import Event, Ticket


@dataclass(frozen=True)
class Opened:
    """A run that is loaded.

    Attributes:
        served: its models.
        examples: questions to click.
        about: gives one line on the run, such as its verdict.
        report: gives the report as HTML; empty where there is none yet.
    """

    served: Served
    examples: Sequence[str]
    about: Callable[[], str]
    report: Callable[[], str]


@dataclass(frozen=True)
class JobState:
    """A training job as it stands.

    Attributes:
        name: of its run; empty where none was ever started.
        status: none, running, finished, stopped or failed.
        told: one line for people.
        share: of the steps done, 0 to 1.
        curve: [(step, "training" or "validation", loss)], nats per trained token.
        samples: [{step, question, answer}], the newest first.
    """

    name: str = ""
    status: str = "none"
    told: str = ""
    share: float = 0.0
    curve: Sequence[tuple[int, str, float]] = ()
    samples: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Choices:
    """What can be trained here: base models with their label, and methods."""

    bases: Sequence[tuple[str, str]] = field(default_factory=list)
    methods: Sequence[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Desk:
    """The functions behind the pages; each raises RetoneError with what to tell.

    Attributes:
        runs: names of the runs that can be talked to, newest first.
        open: loads one of them; one is held at a time.
        vote: keeps a blind vote (run, question, answers by side, side of the tuned one, choice) and
            gives the tally as a sentence.
        choices: what can be trained.
        inspect: looks at a data file (path, base, prompt column, answer column): a page, and what
            stands in the way of training, if anything.
        start: starts a training job (path, base, method, prompt column, answer column, name,
            epochs).
        job: the newest job.
        stop: stops it; it can be gone on with.
    """

    runs: Callable[[], list[str]]
    open: Callable[[str], Opened]
    vote: Callable[[str, str, tuple[str, str], int, str], str]
    choices: Callable[[], Choices]
    inspect: Callable[[str, str, str, str], tuple[str, str]]
    start: Callable[[str, str, str, str, str, str, float | None], JobState]
    job: Callable[[], JobState]
    stop: Callable[[], JobState]


def answers(
    served: Served, asked: Sequence[tuple[Messages, bool]], sampling: Sampling
) -> Iterator[list[str]]:
    """The texts so far of one answer to each prompt, in one batch.

    Closing the iterator gives the answers up. Raises Busy, RowRejected as `Engine.prompt_ids`, and
    RuntimeError where the model fails.

    Args:
        served: who answers.
        asked: prompts, and whether the tuned (True) or the base model answers.
        sampling: how.
    """
    told: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    engine = served.service.engine
    rows = [
        Row(engine.prompt_ids(each), sampling, adapter_of(tuned=tuned)) for each, tuned in asked
    ]

    def teller(at: int) -> Callable[[Event], None]:
        return lambda event: told.put((at, event))

    tickets = [Ticket(row, engine.template.parse, teller(at)) for at, row in enumerate(rows)]
    texts, open_ = [""] * len(tickets), len(tickets)
    served.service.submit(tickets)
    try:
        while open_:
            at, event = told.get()
            if event.fault:
                raise RuntimeError(event.fault)
            texts[at] += event.piece
            open_ -= event.finished
            yield list(texts)
    finally:
        served.service.cancel(tickets)
