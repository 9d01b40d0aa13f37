"""The text of a file: its encoding, its lines, and how much of it may be one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from retone.data.archives import OpenFile, guarded
from retone.errors import InputError

Row = dict[str, Any]
Read = tuple[int, Row | str]  # 1-based line or element, and the row or what is wrong with it

MOST_ROW_BYTES = 64_000_000
_UTF8_MARK = b"\xef\xbb\xbf"
# Byte order marks; the longer ones first, because they begin with the shorter ones.
_WIDE_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def as_utf8(file: OpenFile) -> OpenFile:
    """The file as UTF-8 without a byte order mark; UTF-16 and UTF-32 are told by theirs.

    Raises:
        InputError: the file is UTF-16 without a mark, or no text at all.
    """
    head = file.stream.peek(4)
    if head.startswith(_UTF8_MARK):
        file.stream.read(len(_UTF8_MARK))
        return file
    for mark, encoding in _WIDE_MARKS.items():
        if head.startswith(mark):
            source = pa.PythonFile(file.stream, mode="r")
            recoded = pa.transcoding_input_stream(source, encoding, "utf-8")
            # Recoding makes four bytes of two at most; the unpacking below keeps its own limit.
            stream = guarded(recoded, file.where, packed_bytes=1 << 62)
            return OpenFile(file.name, file.where, stream, file.note)
    if b"\0" in head[:512]:
        raise _not_text(file, head[:512])
    return file


def lines(file: OpenFile) -> Iterator[tuple[int, str]]:
    """(1-based number, line with its end) of a UTF-8 file.

    Raises:
        InputError: a line is not UTF-8 (line and byte are named), or longer than any row.
    """
    number = 0
    while line := file.stream.readline(MOST_ROW_BYTES + 1):
        number += 1
        if len(line) > MOST_ROW_BYTES:
            raise too_large(file, number, MOST_ROW_BYTES)
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(file, number, error) from error


def read_text(file: OpenFile) -> Iterator[Read]:
    """The whole file as one row {"text": ...}; nothing for one of spaces only.

    Raises:
        InputError: the file is not UTF-8, or too large for one row.
    """
    data = file.stream.read(MOST_ROW_BYTES + 1)
    if len(data) > MOST_ROW_BYTES:
        raise too_large(file, 1, MOST_ROW_BYTES)
    if b"\0" in data:
        raise _not_text(file, data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(file, data.count(b"\n", 0, error.start) + 1, error) from error
    if text.strip():
        yield 1, {"text": text}


def too_large(file: OpenFile, line: int, most_bytes: int) -> InputError:
    """The error for a row that is larger than any row should be."""
    return InputError(
        f"a row of the data is larger than {most_bytes // 1_000_000} MB",
        f"{file.where}, line {line}",
        "check the file; text can be cut with: split -C 50m FILE",
        "row-too-large",
    )


def not_utf8(file: OpenFile, line: int, error: UnicodeDecodeError) -> InputError:
    """The error for bytes that are not UTF-8; `error.object` begins before that line's end."""
    before = error.object.rfind(b"\n", 0, error.start) + 1
    return InputError(
        "the data file is not UTF-8",
        f"{file.where}, line {line}: byte 0x{error.object[error.start]:02x} "
        f"at {error.start - before + 1} of the line",
        _iconv(file, "latin1"),
        "not-utf8",
    )


def _not_text(file: OpenFile, data: bytes) -> InputError:
    """The error for NUL bytes: every second one in UTF-16, anything else in a binary file."""
    for start, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if data[start::2].count(0) > max(4, len(data) // 4) and data[1 - start :: 2].count(0) == 0:
            return InputError(
                "the data file is not UTF-8",
                f"{file.where}: it looks like {encoding} without a byte order mark",
                _iconv(file, encoding),
                "not-utf8",
            )
    return InputError(
        "the data file is not text",
        f"{file.where}: a NUL byte at {data.index(0) + 1}",
        f"check the file: file {file.where}",
        "not-text",
    )


def _iconv(file: OpenFile, encoding: str) -> str:
    name = PurePosixPath(file.name)
    return f"iconv -f {encoding} -t utf-8 {name.name} > {name.stem}.utf8{name.suffix}"
