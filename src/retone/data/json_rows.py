"""Rows from JSON and JSON lines, in flat memory, by the standard library's decoder.

`orjson` reads a row of 150 bytes in 0.7 us and this module in 3, but it takes the last of two
values of a repeated key without a word; with a check for that it needs as long. `ijson`, for large
lists, puts "?" in the place of a broken character.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from retone.data.archives import OpenFile
from retone.data.lines import MOST_ROW_BYTES, Read, Row, lines, not_utf8, too_large
from retone.errors import InputError

MOST_OBJECT_BYTES = 256_000_000  # of one object that holds all rows, which is read whole
CHUNK = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")
_ODD_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_TOO_DEEP = "nested too deeply"


class _Decoder:
    """JSON values with what json.loads lets pass: repeated keys, NaN, broken characters."""

    def __init__(self) -> None:
        self._fault = ""
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str, start: int) -> tuple[Any, int, str]:
        """(value, end, fault) of the value at `start`; the fault is empty for a sound value.

        Raises:
            ValueError: there is no whole value, or a number is too long for Python.
            RecursionError: it is nested too deeply.
        """
        self._fault = ""
        value, end = self._json.raw_decode(text, start)
        if text.find("\\u", start, end) >= 0 and _ODD_ESCAPE.search(text, start, end):
            self._fault = self._fault or _odd_character(value)
        return value, end, self._fault

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._fault = f'the key "{twice}" appears twice in one object'
        return made

    def _constant(self, name: str) -> None:
        self._fault = f"{name} is not JSON (write null)"


def _odd_character(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a character: \\u{ord(error.object[error.start]):04x} without its pair"
    return "a NUL character (\\u0000)" if "\\u0000" in text else ""


def read_json_lines(file: OpenFile) -> Iterator[Read]:
    """(line, row or what is wrong with it); empty lines are passed over.

    Raises:
        InputError: the file is not UTF-8, or a line is too long.
    """
    decoder = _Decoder()
    for number, line in lines(file):
        text = line.strip()
        if text:
            yield number, _row_of_line(decoder, text)


def _row_of_line(decoder: _Decoder, text: str) -> Row | str:
    if text.startswith("\ufeff"):
        return "a byte order mark inside the file: files were joined here"
    try:
        value, end, fault = decoder.decode(text, 0)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except ValueError as error:
        return f"not JSON ({error})"
    except RecursionError:
        return _TOO_DEEP
    if end < len(text):
        return f"not JSON (more text at column {end + 1})"
    return _judged(value, fault)


def _judged(value: Any, fault: str) -> Row | str:
    """The value if it is a row, else what is wrong with it."""
    if fault or isinstance(value, dict):
        return fault or value
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return f"a JSON object is expected, found {names.get(type(value), 'a number')}"


def read_json(file: OpenFile) -> Iterator[Read]:
    """(element, row or what is wrong with it) of a list, or of objects one after another.

    A single object is one row, unless it holds exactly one list of objects, as in
    {"data": [...]}: then that list. (A list of chat turns makes the object a row.)

    Raises:
        InputError: what stands there is no JSON, or holds no rows.
    """
    window = _Window(file)
    first = window.next_character()
    if first == "[":
        yield from _elements(window)
    elif first == "{":
        yield from _objects(window)
    elif first:
        value, _ = window.value(MOST_ROW_BYTES)
        raise broken_json(file, window.line, f"a list of objects is expected: {value!r:.40}")


def _elements(window: _Window) -> Iterator[Read]:
    window.step()
    number, after = 0, window.next_character()
    while after != "]":
        number += 1
        yield number, _judged(*window.value(MOST_ROW_BYTES))
        after = window.next_character()
        if after == ",":
            window.step()
            window.next_character()
        elif after != "]":
            what = f"the list goes on with {after!r}" if after else "the file ends, not the list"
            raise broken_json(window.file, window.line, f"after element {number} {what}")
    window.step()
    if rest := window.next_character():
        raise broken_json(window.file, window.line, f"{rest!r} after the end of the list")


def _objects(window: _Window) -> Iterator[Read]:
    value, fault = window.value(MOST_OBJECT_BYTES)
    if not window.next_character():
        yield from enumerate(_inner_rows(window.file, value, fault), 1)
        return
    number = 1
    yield number, _judged(value, fault)
    while window.next_character():
        number += 1
        yield number, _judged(*window.value(MOST_ROW_BYTES))


def _inner_rows(file: OpenFile, value: Row, fault: str) -> list[Row | str]:
    """The rows of a file that is one object."""
    lists = {key: found for key, found in value.items() if _is_list_of_objects(found)}
    if not lists or any(_is_turn(found[0]) for found in lists.values()):
        return [fault or value]
    if fault:
        raise broken_json(file, 1, fault)
    if len(lists) == 1:
        return next(iter(lists.values()))
    raise InputError(
        "the data file has several lists of rows",
        f"{file.where}: {', '.join(lists)}",
        f"jq -c '.{next(iter(lists))}[]' {file.where} > rows.jsonl",
        "several-lists",
    )


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _is_turn(value: Row) -> bool:
    return not {"role", "from"}.isdisjoint(value)


def broken_json(file: OpenFile, line: int, what: str) -> InputError:
    """The error for a file whose JSON cannot be followed any further."""
    return InputError(
        "the data file is not the JSON that it should be",
        f"{file.where}, line {line}: {what}",
        "mend the file there; a list of objects or one object on each line is read",
        "broken-json",
    )


class _Window:
    """The part of a file that is being decoded; what was decoded is forgotten."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self._decoder = _Decoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._lines = 1  # the line on which the text begins
        self._columns = 0  # characters of that line before it
        self._ended = False

    @property
    def line(self) -> int:
        """The line that is being decoded."""
        return self._line_at(self._at)

    def step(self) -> None:
        """Pass over one character."""
        self._at += 1

    def next_character(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def value(self, most_bytes: int) -> tuple[Any, str]:
        """The value at the current place and what is wrong with it, mostly nothing.

        Raises:
            InputError: there is no value, or it is larger than `most_bytes`.
        """
        while True:
            try:
                value, end, fault = self._decoder.decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or self._is_wrong(error):
                    what = f"{error.msg} at column {self._column_at(error.pos)}"
                    if self._ended and error.pos >= len(self._text):
                        what += ", where the file ends"
                    raise broken_json(self.file, self._line_at(error.pos), what) from None
            except ValueError as error:
                raise broken_json(self.file, self.line, str(error)) from None
            except RecursionError:
                raise broken_json(self.file, self.line, _TOO_DEEP) from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value, fault
            if len(self._text) - self._at > most_bytes:
                raise too_large(self.file, self.line, most_bytes)
            self._read_on()

    def _is_wrong(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could not mend it: text ends, and escapes are short."""
        return "Unterminated" not in error.msg and error.pos < len(self._text) - 16

    def _read_on(self) -> None:
        """Read as much again as is kept, so that a long value is tried few times."""
        self._columns, self._lines = self._column_at(self._at) - 1, self.line
        kept = self._text[self._at :]
        data = self.file.stream.read(max(CHUNK, len(kept)))
        self._ended = not data
        try:
            self._text = kept + self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._lines + kept.count("\n") + error.object[: error.start].count(b"\n")
            raise not_utf8(self.file, line, error) from error
        self._at = 0

    def _line_at(self, position: int) -> int:
        return self._lines + self._text.count("\n", 0, position)

    def _column_at(self, position: int) -> int:
        newline = self._text.rfind("\n", 0, position)
        return position - newline if newline >= 0 else self._columns + position + 1
