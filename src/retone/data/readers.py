"""From the bytes of one file to rows: the kind is told by the ending and checked by the content."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from retone.data.archives import BUFFER, DATA_ENDINGS, OpenFile, unknown_kind
from retone.data.columnar import read_arrow, read_parquet
from retone.data.json_rows import read_json, read_json_lines
from retone.data.lines import MOST_ROW_BYTES, Read, as_utf8, lines, read_text, too_large
from retone.errors import InputError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
Reader = Callable[[OpenFile], tuple[str, Iterator[Read]]]


def read_rows(file: OpenFile) -> tuple[str, Iterator[Read]]:
    """What was taken for granted (often empty), and the rows with their lines or elements.

    Rows come one by one, in flat memory; a row that cannot be read comes as text that says why.

    Raises:
        InputError: the kind is not known, or the file as a whole cannot be read. Most of these
            come only while the rows are read.
    """
    ending = file.ending
    kind = _binary_kind(file)
    if kind is None:
        file = as_utf8(file)
        kind = _text_kind(file)
    if kind not in READERS:
        raise unknown_kind(file.where, ending, f"save it as one of {', '.join(DATA_ENDINGS)}")
    note, rows = READERS[kind](file)
    surprise = f"read as {_NAMES[kind]}" if _NAMES[kind] != _NAMES.get(ending) else ""
    return "; ".join(text for text in (file.note, surprise, note) if text), rows


def read_separated(expected: str) -> Reader:
    """A reader of values between `expected`, or between what the header has instead of it."""

    def read(file: OpenFile) -> tuple[str, Iterator[Read]]:
        first = _first_line(file)
        separator = _separator(first, expected)
        note = "" if separator == expected else f"{_SEPARATORS[separator]} between the columns"
        return note, _separated_rows(file, separator)

    return read


def _plain(read: Callable[[OpenFile], Iterator[Read]]) -> Reader:
    return lambda file: ("", read(file))


READERS: dict[str, Reader] = {
    ".jsonl": _plain(read_json_lines),
    ".ndjson": _plain(read_json_lines),
    ".json": _plain(read_json),
    ".csv": read_separated(","),
    ".tsv": read_separated("\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": _plain(read_text),
    ".md": _plain(read_text),
}
_NAMES = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".txt": "text",
    ".md": "text",
}


def _binary_kind(file: OpenFile) -> str | None:
    head = file.stream.peek(6)
    if head.startswith(b"PAR1"):
        return ".parquet"
    if head.startswith(b"ARROW1"):
        return ".arrow"
    return file.ending if file.ending in (".parquet", ".arrow") else None


def _text_kind(file: OpenFile) -> str:
    """The kind by the first line of text, where it is clear; else by the ending.

    An object that fills the line begins JSON lines. A line that begins with a bracket, and goes
    on like a list of objects, begins JSON.
    """
    if file.ending == ".md":
        return ".md"
    line, more = _first_line(file), _has_second_line(file)
    start = line.lstrip()
    if file.ending in (".jsonl", ".ndjson") and start.startswith("["):
        return ".json" if start[1:].lstrip()[:1] in ("{", "") else file.ending
    value = _json_object(start)
    if value is not None:
        return file.ending if file.ending == ".json" and not more else ".jsonl"
    if start.rstrip() == "{" and file.ending in (".jsonl", ".ndjson"):
        return ".json"
    if file.ending in READERS:
        return file.ending
    if start.startswith(("[", "{")):
        return ".json"
    return ".csv" if _is_table(file) else ""


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _head(file: OpenFile) -> str:
    return file.stream.peek(1).decode(errors="replace")


def _first_line(file: OpenFile) -> str:
    return next((line for line in _head(file).split("\n") if line.strip()), "")


def _has_second_line(file: OpenFile) -> bool:
    return sum(1 for line in _head(file).split("\n") if line.strip()) > 1


def _separator(header: str, expected: str) -> str:
    """What stands between the columns of a header: the expected character if it is there."""
    counts = {one: _columns(header, one) for one in (expected, *_SEPARATORS)}
    return expected if counts[expected] > 1 else max(counts, key=counts.__getitem__)


def _columns(line: str, separator: str) -> int:
    return len(next(csv.reader([line], delimiter=separator), []))


def _is_table(file: OpenFile) -> bool:
    """Whether the first lines have the same number of columns, two at least."""
    head = _head(file)
    whole = head[: head.rfind("\n") + 1] if len(head) > BUFFER // 4 else head
    found = [line for line in whole.split("\n") if line.strip()][:6]
    if len(found) < 2:
        return False
    separator = _separator(found[0], ",")
    counts = {_columns(line, separator) for line in found}
    return len(counts) == 1 and counts.pop() > 1


def _separated_rows(file: OpenFile, separator: str) -> Iterator[Read]:
    """(line on which the row begins, row or what is wrong with it) below the header."""
    odd: list[str] = []  # what is wrong with the lines read since the last row

    def text_lines() -> Iterator[str]:
        for number, line in lines(file):
            if "\0" in line:
                odd.append("a NUL byte")
            if "\ufeff" in line and number > 1:
                odd.append("a byte order mark inside the file: files were joined here")
            yield line

    csv.field_size_limit(MOST_ROW_BYTES)
    reader = csv.reader(text_lines(), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield start, _separated_fault(file, start, reader.line_num, error)
            continue
        if values is None:
            return
        if not values:
            continue
        if header is None:
            header = _checked_header(file, start, values)
        elif odd:
            yield start, odd[0]
        elif len(values) != len(header):
            yield start, f"{len(values)} values for {len(header)} columns"
        else:
            yield start, dict(zip(header, values, strict=True))
        odd.clear()


def _separated_fault(file: OpenFile, start: int, end: int, error: csv.Error) -> str:
    """What is wrong with a row; InputError where the rows after it are lost as well."""
    text = str(error)
    if "unexpected end of data" in text:
        raise InputError(
            "a quote in the data file is never closed",
            f"{file.where}, line {start}: the value runs to the end of the file",
            'close the quote (a quote inside a value is written twice: "")',
            "unclosed-quote",
        )
    if "field limit" in text:
        raise too_large(file, start, MOST_ROW_BYTES)
    if "new-line character" in text:
        text = "a carriage return inside (line ends of old Macs: tr '\\r' '\\n')"
    return text if start >= end else f"{text} in line {end}, where a quote was open"


def _checked_header(file: OpenFile, line: int, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    twice = sorted({name for name, group in itertools.groupby(sorted(names)) if len([*group]) > 1})
    if twice:
        raise InputError(
            "two columns of the data file have the same name",
            f"{file.where}, line {line}: {', '.join(repr(name) for name in twice)}",
            "give each column a name of its own in the first line",
            "repeated-column",
        )
    return names
