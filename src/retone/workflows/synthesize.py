"""`retone synthesize`: a teacher model writes a persona's dataset."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from retone import console
from retone.config import ModelSection
from retone.conversation import Conversation
from retone.errors import CheckFailed, InputError
from retone.inference.service import Service
from retone.models.locate import cache_dir
from retone.recipe_file import complete_recipe
from retone.run_dir import fingerprint
from retone.teacher.answers import Manner
from retone.teacher.asking import Endpoint, Price
from retone.teacher.client import Teacher
from retone.teacher.document_questions import Coverage, document_rows
from retone.teacher.documents import Reading, find_documents, read_documents
from retone.teacher.endpoints import LocalEndpoint, OpenAIEndpoint, find_server
from retone.teacher.limits import Meter
from retone.teacher.outputs import Outputs, card_text
from retone.teacher.persona import Persona, load_persona
from retone.teacher.pricing import Estimate, estimate_conversations, estimate_each, find_price
from retone.teacher.questions import Asked, Door, find_questions
from retone.teacher.rewriting import Pair, evolve_questions, made_plain, restyled
from retone.teacher.store import Store
from retone.teacher.synthesis import Row, Tally, pair_rows, write_rows
from retone.workflows.create import read_samples_of
from retone.workflows.load import load_base_engine

LOCAL = "local"
DEFAULT_MODEL = ModelSection().name
Mode = Literal["questions", "evolve", "rewrite", "author", "documents"]


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        persona: a bundled one, or a file; None for documents, which need none.
        output: JSON lines of the rows that are kept.
        count: most questions.
        mode: questions found on a grid; or from `given`: evolved questions, plain texts restyled,
            an author's texts with what they say in plain words, or questions about documents.
        given: the file or folder that the mode starts from.
        manner: how answers are made.
        seed: of the grid.
    """

    persona: str | None
    output: Path
    count: int = 300
    mode: Mode = "questions"
    given: str | None = None
    manner: Manner = field(default_factory=Manner)
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """Which teacher, and what it may cost.

    Attributes:
        endpoint: `local`, a name of tables/endpoints.toml, or a URL.
        model: its name there; for `local` a base model as in a recipe.
        judge: another model that judges answers, as MODEL@ENDPOINT.
        budget: US dollars; needed where the model has a price.
        price: US dollars for a million tokens in and out, where the table does not know them.
        concurrency: most requests at once.
        seconds: longest wait for an answer.
    """

    endpoint: str = LOCAL
    model: str | None = None
    judge: str | None = None
    budget: float | None = None
    price: str | None = None
    concurrency: int = 16
    seconds: float = 120
    offline: bool = False


@dataclass(frozen=True)
class Synthesized:
    """A dataset that was written, and how; without files, only what it would take."""

    path: Path
    files: dict[str, str]
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The object of `retone synthesize --json`."""
        return {"path": str(self.path), "files": self.files, **self.facts}

    def show(self) -> None:
        """Print what was kept, what was left out, and what it cost."""
        to = console.out()
        if not self.files:
            to.print(escape(f"expected: {self.facts['expected']}"))
            return
        told = f"{self.facts['rows']} rows in {self.path}: {self.facts['ended']}"
        to.print(escape(told), style="bold", soft_wrap=True)
        for name in ("reasons", "unanswered", "unread"):
            for reason, count in self.facts.get(name, {}).items():
                to.print(escape(f"  left out: {reason}: {count}"), style="dim", soft_wrap=True)
        to.print(escape(self.facts["spent"]))
        for what, path in self.files.items():
            to.print(escape(f"{what}: {path}"), soft_wrap=True)
        to.print(escape(f"next: retone review {self.path}"), soft_wrap=True)


def synthesize(order: Order, source: Source, *, plan: bool = False) -> Synthesized:
    """Write a dataset; stopped and started again it goes on, and pays for nothing twice.

    Args:
        order: what is to be written.
        source: who writes it.
        plan: only tell what it would take.

    Raises:
        InputError: the persona, the teacher or the given texts are wrong, the output is there
            already, or a model with a price has no budget.
    """
    there = [path for path in (order.output, *Outputs(order.output).beside) if path.exists()]
    if there:
        raise InputError(
            "the file is there already",
            ", ".join(map(str, there)),
            "choose another name; answers that are known are not paid for again",
            "exists",
        )
    persona = load_persona(order.persona) if order.persona else None
    work = _work(order, persona)
    teacher_price = _price(source.endpoint, source.model, source.price)
    judge = _judge_of(source)
    judge_price = _price(*judge, None) if judge else Price()
    expected = work.expected(teacher_price, source.concurrency)
    console.note(f"expected: {expected}" + (", and what the judge costs" if judge else ""))
    if plan:
        return Synthesized(order.output, {}, {"expected": str(expected), **asdict(expected)})
    _require_budget(source, expected, [teacher_price, judge_price])
    store = Store(cache_dir() / "teacher" / "replies.sqlite3")
    with ExitStack() as stack:
        endpoint = _endpoint(source.endpoint, source.model, teacher_price, source)
        teacher = stack.enter_context(
            Teacher(
                endpoint, store, Meter(source.budget), order=_order_key(order, endpoint),
                judge=_endpoint(*judge, judge_price, source) if judge else None,
                # A model here does not hang, but it may be slow.
                seconds=math.inf if source.endpoint == LOCAL else source.seconds,
            )
        )  # fmt: skip
        tick = stack.enter_context(console.ticker())
        return _written(order, persona, work, teacher, tick)


def _require_budget(source: Source, expected: Estimate, prices: list[Price]) -> None:
    """InputError where something has a price and there is no budget, or none that is a number."""
    if source.budget is None and prices == [Price()] * len(prices):
        return
    if source.budget is None or not math.isfinite(source.budget):
        raise InputError(
            "a teacher with a price needs a budget",
            f"expected: {expected}",
            f"--budget {max(1, round(2 * expected.dollars))}   (US dollars; it stops there)",
            "no-budget",
        )


def _order_key(order: Order, endpoint: Endpoint) -> str:
    """What the money is spent on: the same order goes on with the same budget."""
    given = {name: value for name, value in asdict(order).items() if name != "output"}
    return fingerprint(given, endpoint.name, endpoint.model)


@dataclass(frozen=True)
class Work:
    """One mode: what it expects, and the rows that it makes.

    Attributes:
        expected: price and concurrency -> what it takes.
        rows: teacher -> its rows, those that are left out with their faults.
        facts: what became of it, when the rows are through.
        total: rows that are expected at most.
    """

    expected: Callable[[Price, int], Estimate]
    rows: Callable[[Teacher], Iterator[Row]]
    facts: Callable[[], dict[str, Any]]
    total: int


def _work(order: Order, persona: Persona | None) -> Work:
    if order.mode == "documents":
        return _documents(order)
    if persona is None:
        raise InputError(
            "whose voice is it?", "no persona", "retone synthesize lighthouse -o data.jsonl",
            "no-persona",
        )  # fmt: skip
    if order.mode in ("rewrite", "author"):
        return _pairs(order, persona)
    return _conversations(order, persona)


def _conversations(order: Order, persona: Persona) -> Work:
    asked, door, tally = Asked(order.count), Door(), Tally()
    seeds = _texts(order) if order.mode == "evolve" else []

    def rows(teacher: Teacher) -> Iterator[Row]:
        questions = (
            evolve_questions(teacher, persona, seeds, asked, door)
            if order.mode == "evolve"
            else find_questions(
                teacher, persona, order.count, seed=order.seed, asked=asked, door=door
            )
        )
        yield from write_rows(teacher, persona, questions, order.manner, tally)

    def facts() -> dict[str, Any]:
        return {"questions": _counts(asked), **_counts(tally), "ended": tally.ended or asked.ended}

    expected = partial(estimate_conversations, persona, order.manner, order.count)
    return Work(expected, rows, facts, order.count)


def _pairs(order: Order, persona: Persona) -> Work:
    tally = Tally()
    texts = _texts(order)[: order.count]
    make = restyled if order.mode == "rewrite" else made_plain

    def rows(teacher: Teacher) -> Iterator[Row]:
        async def pair(text: str) -> Pair:
            return await make(teacher, persona, text, order.seed)

        yield from pair_rows(teacher, persona, teacher.each(pair, texts), tally)

    def facts() -> dict[str, Any]:
        return {**_counts(tally), "ended": tally.ended or f"{len(texts)} texts are through"}

    characters = sum(map(len, texts)) // max(1, len(texts))
    told = len(persona.system) // 4 + characters // 4
    expected = partial(estimate_each, len(texts), told, characters // 4)
    return Work(expected, rows, facts, len(texts))


def _documents(order: Order) -> Work:
    paths = find_documents(Path(order.given or "."))
    reading, coverage = Reading([], {}), Coverage()
    chunks = list(read_documents(paths, reading))
    if not chunks:
        raise InputError(
            "none of the documents could be read",
            "; ".join(f"{name}: {why}" for name, why in list(reading.left_out.items())[:5]),
            "retone synthesize --documents FOLDER",
            "no-documents",
        )

    def rows(teacher: Teacher) -> Iterator[Row]:
        yield from map(Row, document_rows(teacher, chunks, coverage, most=order.count))

    def facts() -> dict[str, Any]:
        ended = coverage.ended or f"{coverage.chunks} parts of {len(reading.files)} documents"
        return {
            "coverage": _counts(coverage), "documents": _counts(reading), "ended": ended,
            "reasons": dict(coverage.dropped), "unanswered": {}, "unread": reading.left_out,
        }  # fmt: skip

    told = sum(len(chunk.text) for chunk in chunks) // max(1, len(chunks)) // 4 + 120
    return Work(partial(estimate_each, len(chunks), told, 200), rows, facts, order.count)


def _texts(order: Order) -> list[str]:
    """The texts of the given file: what users ask in it, or any text of a row, once each."""
    if order.given is None:
        raise InputError(
            f"--{order.mode} needs a file", "none was named", f"--{order.mode} FILE", "no-file"
        )
    recipe = complete_recipe({"data": {"train": order.given}}, order.given)
    samples = read_samples_of(recipe.model_dump(), recipe.data.sources("train")[0])
    texts = [
        sample.question or sample.answer if isinstance(sample, Conversation) else sample.text
        for sample in samples
    ]
    found = [text.strip() for text in dict.fromkeys(texts) if text.strip()]
    if not found:
        raise InputError("there are no texts", order.given, "name another file", "empty-data")
    return found


def _price(endpoint: str, model: str | None, given: str | None) -> Price:
    """What a teacher or a judge costs. Raises InputError where nobody knows, or it has no name."""
    if endpoint == LOCAL:
        return Price()
    if not model:
        raise InputError(
            "which model shall answer?", f"--endpoint {endpoint} without --teacher",
            "--teacher MODEL   (its name on that server)", "no-teacher",
        )  # fmt: skip
    return find_price(find_server(endpoint)[0], model, given)


def _endpoint(endpoint: str, model: str | None, price: Price, source: Source) -> Endpoint:
    """A server, or a base model on this machine as recipes name it."""
    if endpoint == LOCAL:
        engine, sha256 = load_base_engine(model or DEFAULT_MODEL, offline=source.offline)
        return LocalEndpoint(Service(engine), f"{model or DEFAULT_MODEL} {sha256[:12]}")
    url, key = find_server(endpoint)
    return OpenAIEndpoint(url, model or "", key, source.concurrency, price)


def _judge_of(source: Source) -> tuple[str, str] | None:
    """Endpoint and model that judge, where they are others."""
    if source.judge is None:
        return None
    model, _, endpoint = source.judge.partition("@")
    return endpoint or LOCAL, model


def _written(
    order: Order, persona: Persona | None, work: Work, teacher: Teacher, tick: console.Ticker
) -> Synthesized:
    """Write the rows as they come, and the card when all are there."""
    kept = 0
    with Outputs(order.output) as outputs:
        for done, row in enumerate(work.rows(teacher), 1):
            outputs.add(row)
            kept += not row.faults
            tick("rows", min(done, work.total), work.total, str(teacher.meter))
        how = f"mode {order.mode}, {json.dumps(asdict(order.manner))}, seed {order.seed}"
        facts = {**work.facts(), "rows": kept, "how": how, "spent": str(teacher.meter),
                 "meter": asdict(teacher.meter)}  # fmt: skip
        if not kept:
            reasons = {**facts["reasons"], **facts["unanswered"]}
            raise CheckFailed(
                "no row was kept",
                f"{facts['ended']}; {reasons or 'no reason was given'}",
                "take a stronger --teacher, or a smaller --least",
                "no-rows",
            )
        outputs.card(card_text(order.output.name, persona, teacher, facts))
    return Synthesized(order.output, outputs.files, facts)


def _counts(one: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON takes them; `asdict` cannot make a Counter again."""
    return {
        name: dict(value) if isinstance(value, Counter) else value
        for name, value in vars(one).items()
    }
