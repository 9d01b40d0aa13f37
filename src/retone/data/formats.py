"""Row shapes -> samples: a table. The first shape whose columns are there is taken.

`detect_shape` looks at the first rows of a source, `convert` reads all of them as that shape. What
cannot be read is counted with its row and field; nothing is skipped and nothing is guessed at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retone.config import SourceSection
from retone.conversation import Conversation, Document, Preference
from retone.data.documents import find_text
from retone.data.fields import SYSTEM_COLUMNS, Reading, RowProblem, brief, check_depth
from retone.data.instructions import (
    PROMPT_COLUMNS,
    find_alpaca,
    find_pair,
    find_prompts,
    find_qa,
    find_seed,
    prompts_reading,
)
from retone.data.look_alikes import refuse_look_alikes
from retone.data.placeholders import Filler
from retone.data.preferences import find_preference
from retone.data.sources import BadRows, Item, Row
from retone.data.turns import (
    CHAT_COLUMNS,
    MEDIA,
    TOOL_COLUMNS,
    find_messages,
    find_sharegpt,
    with_system,
)
from retone.errors import InputError, nearest

Sample = Conversation | Preference | Document

LOOKED_AT = 64  # rows of a source that tell its shape
FIRST_PART = re.compile(r"\w+")  # the column at the beginning of a field's path


@dataclass(frozen=True)
class Format:
    """One line of the table.

    Attributes:
        find: row -> how such rows are read; None where the row has another shape.
        parts: names that `data.columns` may map to columns of the source.
        needs: the columns that make this shape, in words.
        example: one row, as a line of JSON.
    """

    find: Callable[[Row], Reading | None]
    parts: tuple[str, ...]
    needs: str
    example: str


@dataclass(frozen=True)
class Shape:
    """A recognised row shape.

    Attributes:
        name: a key of `FORMATS`.
        evidence: what told, in words.
        convert: row -> samples; source, row number and the other columns are filled in by
            `convert` below. Raises RowProblem.
        columns: columns that are read where a row has them; the others are kept as extra.
    """

    name: str
    evidence: str
    convert: Callable[[Row], Sequence[Sample]]
    columns: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "preference": Format(
        find_preference,
        ("prompt", "chosen", "rejected", "label"),
        "chosen and rejected, or an answer with a label that is true or false",
        '{"prompt": "Hi", "chosen": "Good day!", "rejected": "What?"}',
    ),
    "messages": Format(
        find_messages,
        ("messages",),
        f"a list of turns with role and content, in {', '.join(CHAT_COLUMNS)}",
        '{"messages": [{"role": "user", "content": "Hi"}, '
        '{"role": "assistant", "content": "Good day!"}]}',
    ),
    "sharegpt": Format(
        find_sharegpt,
        ("conversations",),
        "a list of turns with from and value, of exchanges, or of texts, in the same columns",
        '{"conversations": [{"from": "human", "value": "Hi"}, '
        '{"from": "gpt", "value": "Good day!"}]}',
    ),
    "seed": Format(
        find_seed,
        ("instruction", "instances"),
        "instruction and instances, a list of objects with input and output",
        '{"instruction": "Greet.", "instances": [{"input": "Ada", "output": "Hi, Ada!"}]}',
    ),
    "alpaca": Format(
        find_alpaca,
        ("instruction", "input", "output", "history"),
        "instruction and output; or instruction, input or context, and response or answer",
        '{"instruction": "Greet.", "input": "Ada", "output": "Hi, Ada!"}',
    ),
    "qa": Format(
        find_qa,
        ("question", "answer", "answers", "answer_keywords", "context"),
        "question or query, with answer, answers or answer_keywords",
        '{"question": "Where is Oslo?", "answer_keywords": ["Norway"]}',
    ),
    "pair": Format(
        find_pair,
        ("prompt", "completion", "history"),
        "prompt and completion, or another known pair of columns",
        '{"prompt": "Hi", "completion": "Good day!"}',
    ),
    "text": Format(
        find_text,
        ("text",),
        "text: plain text, not a rendered chat",
        '{"text": "Once upon a time ..."}',
    ),
    "prompts": Format(
        find_prompts,
        ("prompt",),
        f"one of {', '.join(PROMPT_COLUMNS)} and no other text, or a list of questions in turns",
        '{"prompt": "Hi"}',
    ),
}


def detect_shape(rows: Sequence[Row], source: SourceSection, file: str) -> Shape:
    """The shape that most of the first rows have.

    Args:
        rows: the first rows of a source, up to `LOOKED_AT`.
        source: its `format` may name the shape, and its `columns` map parts to columns.
        file: what messages call the source.

    Raises:
        InputError: no row has a shape that is known, the rows only look like one, or the recipe
            names a shape or a column that is not there.
    """
    _check_names(rows, source, file)
    filled = {name for row in rows for name, value in row.items() if value is not None}
    shapes: dict[str, Shape] = {}
    votes: Counter[str] = Counter()
    for row in rows:
        # Tables that were joined have columns that are null throughout: those tell nothing.
        shape = _shape_of({name: row[name] for name in row if name in filled}, source)
        if shape is not None:
            shapes.setdefault(shape.evidence, shape)
            votes[shape.evidence] += 1
    best = shapes[votes.most_common(1)[0][0]] if votes else None
    if source.format == "auto" and (best is None or best.name == "text"):
        refuse_look_alikes([_renamed(row, source.columns) for row in rows], file)
    if best is None:
        raise _unknown_shape(rows, source, file)
    return best


def convert(
    items: Iterable[Item],
    shape: Shape,
    *,
    system: str | None,
    values: Mapping[str, str],
    bad: BadRows,
) -> Iterator[Sample]:
    """The samples of all rows, one after another.

    Args:
        items: rows with their places.
        shape: how they are read. A row of another shape is added to `bad`.
        system: put before every conversation that has no system prompt of its own.
        values: what placeholders such as {{name}} stand for.
        bad: collects the rows that cannot be read.

    Raises:
        InputError: `unfilled-placeholders`, at the end, with all names that `values` lacks. The
            rows that have them are not among the samples.
    """
    filler = Filler(values)
    prompt = filler.fill(system or "", "data.system")
    for item in items:
        missed = filler.missed
        try:
            row = _prepared(item, shape, filler)
            samples = shape.convert(row) if filler.missed == missed else []
        except RowProblem as problem:
            bad.add(item.file, item.number, str(problem))
            continue
        rest = {key: value for key, value in item.values.items() if key not in shape.columns}
        for sample in samples:
            yield _finished(sample, item, rest, prompt)
    filler.require_all()


def _prepared(item: Item, shape: Shape, filler: Filler) -> Row:
    """The row with its placeholders filled, once it is known to be nothing but text."""
    row = dict(item.values)
    for column in set(MEDIA) & row.keys() - set(shape.columns):
        value = row[column]
        if value and isinstance(value, list | dict | bytes):  # a text is only a name or an address
            raise RowProblem(column, f"only text is trained, found {brief(value)}")
    for column in shape.columns:
        if column in row:
            check_depth(row[column], column)
            row[column] = filler.fill(row[column], f"{item.file}, row {item.number}, {column}")
    return row


def _finished(sample: Sample, item: Item, rest: Row, system: str) -> Sample:
    """The sample with its place, the columns that were not read, and the system prompt."""
    extra = {**rest, **sample.extra}
    sample = replace(sample, source=item.file, row=item.number, extra=extra)
    if isinstance(sample, Conversation):
        return replace(sample, messages=with_system(sample.messages, system))
    if isinstance(sample, Preference):
        return replace(sample, prompt=with_system(sample.prompt, system))
    return sample


def _shape_of(row: Row, source: SourceSection) -> Shape | None:
    """The first shape of the table that this row has and that reads every mapped column.

    Mapped columns may also be a shape on their own, whatever other columns there are.
    """
    columns = source.columns
    whole = _renamed(row, columns)
    mapped = {part: whole[part] for part in columns if part in whole}
    for view in (whole, mapped):
        for name, form in FORMATS.items():
            if source.format not in ("auto", name):
                continue
            reading = form.find(view)
            if reading is not None and columns.keys() <= set(reading.columns):
                return _shape(name, reading, columns)
    if source.format == "prompts":  # named: whatever else the rows hold
        column = next((name for name in PROMPT_COLUMNS if name in whole), None)
        return None if column is None else _shape("prompts", prompts_reading(column), columns)
    return None


def _shape(name: str, reading: Reading, columns: Mapping[str, str]) -> Shape:
    """A shape whose problems name the source's own columns."""

    def read(row: Row) -> Sequence[Sample]:
        try:
            return reading.read(_renamed(row, columns))
        except RowProblem as problem:
            part = FIRST_PART.match(problem.field)
            head = part[0] if part else ""
            path = columns.get(head, head) + problem.field[len(head) :]
            raise RowProblem(path, problem.what) from problem

    mapped = ", ".join(f"{part} = {column}" for part, column in columns.items())
    evidence = f"{reading.evidence}; {mapped}" if mapped else reading.evidence
    return Shape(name, evidence, read, tuple(columns.get(part, part) for part in reading.columns))


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the mapped columns under the names of their parts."""
    if not columns:
        return row
    given = {*columns, *columns.values()}
    others = {key: value for key, value in row.items() if key not in given}
    return {**{part: row[name] for part, name in columns.items() if name in row}, **others}


def _check_names(rows: Sequence[Row], source: SourceSection, file: str) -> None:
    """InputError where the recipe names a shape, a part or a column that does not exist."""
    if source.format not in ("auto", *FORMATS):
        raise InputError(
            "there is no such row shape",
            f"data.format = {source.format!r}{nearest(source.format, FORMATS)}",
            f"one of auto, {', '.join(FORMATS)}",
            "unknown-format",
        )
    parts = sorted({part for form in FORMATS.values() for part in form.parts})
    parts += [*SYSTEM_COLUMNS, *TOOL_COLUMNS]
    for part in source.columns:
        if part not in parts:
            raise InputError(
                "data.columns names a part that no row shape has",
                f"{part}{nearest(part, parts)}",
                f"one of {', '.join(parts)}",
                "unknown-part",
            )
    present = list(dict.fromkeys(name for row in rows for name in row))
    missing = [name for name in source.columns.values() if name not in present]
    if missing:
        raise InputError(
            "the data file lacks the columns that the recipe names",
            f"{file}: no column {', '.join(missing)}{nearest(missing[0], present)}; "
            f"there are {', '.join(present)}",
            'data.columns = { prompt = "...", completion = "..." }',
            "missing-column",
        )


def _unknown_shape(rows: Sequence[Row], source: SourceSection, file: str) -> InputError:
    """What the first row has, and the flag that would say how to read it."""
    if not rows:
        return InputError("no row can be read", f"{file}: 0 rows", "check the file", "empty-data")
    row = rows[0]
    listed = ", ".join(
        name if isinstance(value, str) else f"{name} ({brief(value)})"
        for name, value in row.items()
    )
    prompt, completion = _likely_pair(rows)
    remedy = f'--set \'data.columns={{prompt="{prompt}", completion="{completion}"}}\''
    found = f"{file}, row 1: columns {listed}"
    if source.format != "auto":
        found += f"; {source.format} needs {FORMATS[source.format].needs}"
        return InputError(
            "the rows do not have the shape that the recipe names", found, remedy, "unknown-shape"
        )
    remedy += f", or --set data.format=NAME with one of {', '.join(FORMATS)}"
    return InputError("the rows have no shape that is known", found, remedy, "unknown-shape")


def _likely_pair(rows: Sequence[Row]) -> tuple[str, str]:
    """The first two columns of long texts, to show how columns are named."""
    lengths: Counter[str] = Counter()
    for row in rows:
        lengths.update({name: len(value) for name, value in row.items() if isinstance(value, str)})
    longest = max(lengths.values(), default=0)
    likely = [name for name, length in lengths.items() if 2 * length >= longest > 0]
    return (likely[0], likely[1]) if len(likely) > 1 else ("COLUMN", "COLUMN")
