"""From a file on disk to plain byte streams: gzip, Zstandard and zip unpacked within limits.

What the bytes say wins over what the name says; where they differ, `OpenFile.note` tells.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from retone.errors import InputError

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md")
PACKED_ENDINGS = (".gz", ".zst", ".zip")
MOST_UNPACKED = 100_000_000  # bytes that any file may unpack to, however small it is
MOST_RATIO = 100  # text packs 3 to 20 times; more than this, beyond the bytes above, is a bomb
MOST_LAYERS = 3  # a .csv.gz in a zip has two
BUFFER = 1 << 16

# Files of other programs, and how to get rows out of them.
_FOREIGN = {
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".ods": "save the sheet as CSV",
    ".docx": "save the document as text",
    ".pdf": "pdftotext FILE.pdf",
    ".tar": "tar xf FILE, then give the folder",
    ".tgz": "tar xf FILE, then give the folder",
    ".bz2": "bunzip2 FILE",
    ".xz": "unxz FILE",
    ".7z": "unpack it, then give the folder",
    ".pkl": "save the rows as JSONL (a pickle can run code when opened)",
    ".pt": "save the rows as JSONL (a pickle can run code when opened)",
}
_TEXT_ENDINGS = (".txt", ".md")
# Files that stand beside data and are none.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|copying|changelog|citation|authors|contributing|requirements)"
    r"(\.(md|txt|rst))?|(dataset_infos?|dataset_dict|state)\.json"
)
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")
# What the unpackers raise for bytes that end early or make no sense.
_BROKEN = (
    EOFError, OSError, RuntimeError, UnicodeError, ValueError, NotImplementedError,
    lzma.LZMAError, zipfile.BadZipFile, zlib.error, pa.ArrowException,
)  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """A file of rows on this machine.

    Attributes:
        path: a regular file.
        name: as shown to people.
        commit: of the repository on the hub that it comes from; empty for other files.
    """

    path: Path
    name: str
    commit: str = ""


@dataclass
class OpenFile:
    """The bytes of one file of rows, unpacked.

    Attributes:
        name: as shown to people, for example `chats.zip/part1.csv`; its ending tells the kind.
        where: the same with the whole path, for errors.
        stream: buffered, at its start.
        note: what was taken for granted or left out on the way here; often empty.
    """

    name: str
    where: str
    stream: io.BufferedReader[Any]
    note: str = ""

    @property
    def ending(self) -> str:
        """`.csv` of `Pairs.CSV`, without the ending of what packed it."""
        return data_ending(self.name)


def data_ending(name: str) -> str:
    """The ending that tells the kind of rows: `.jsonl` of `a.jsonl.gz`; empty without one."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in PACKED_ENDINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def choose_data_files(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names that hold rows, sorted, and the others that people may miss.

    Hidden files, READMEs and licences count as neither. Text files count as rows only where there
    is nothing else, because beside other data they describe it.
    """
    shown = sorted(name for name in names if not _is_about(name))
    endings = {name: data_ending(name) for name in shown}
    packed = {name for name in shown if name.lower().endswith(".zip") and not endings[name]}
    texts = [name for name in shown if endings[name] in _TEXT_ENDINGS]
    rows = [n for n in shown if n in packed or (endings[n] in DATA_ENDINGS and n not in texts)]
    chosen = rows or texts
    return chosen, [name for name in shown if name not in set(chosen)]


def open_files(file: DataFile) -> Iterator[OpenFile]:
    """The streams of a file on disk: one, or one for each member of a zip, in name order.

    Each is closed when the next is asked for.

    Raises:
        InputError: the file is another program's, cannot be opened, is cut short or damaged, is
            encrypted, or unpacks to more than any data would. Some of these come only while a
            stream is read.
    """
    ending = data_ending(file.name)
    if ending in _FOREIGN:
        raise unknown_kind(str(file.path), ending, _FOREIGN[ending])
    try:
        stream = io.BufferedReader(io.FileIO(file.path), BUFFER)
    except OSError as error:
        raise InputError(
            "the data file cannot be opened",
            f"{file.path}: {error.strerror}",
            f"chmod u+r {file.path}" if isinstance(error, PermissionError) else "check the file",
            "unreadable-file",
        ) from error
    with stream:
        opened = OpenFile(file.name, str(file.path), stream)
        yield from _unpacked(opened, file.path.stat().st_size, _packings(file.name), 0)


def unknown_kind(where: str, ending: str, remedy: str) -> InputError:
    """The error for a file that holds no rows that are read."""
    told = f"ending {ending!r}" if ending else "no ending, and no clear content"
    return InputError(
        "this kind of data file is not read", f"{where}: {told}", remedy, "unknown-file-kind"
    )


def broken_file(where: str, what: str) -> InputError:
    """The error for a file that is cut short or damaged."""
    return InputError(
        "the data file is damaged or cut short",
        f"{where}: {what}",
        "fetch or make the file again",
        "broken-file",
    )


def _is_about(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return hidden or not parts or _ABOUT.fullmatch(parts[-1].lower()) is not None


def _packings(name: str) -> list[str]:
    """The endings that tell how a file is packed, the innermost first."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    return [suffix for suffix in suffixes if suffix in PACKED_ENDINGS]


def _unpacked(
    file: OpenFile, packed_bytes: int, packings: list[str], layer: int
) -> Iterator[OpenFile]:
    """Unpack layer by layer, told by the first bytes; `packings` are those the name tells."""
    head = file.stream.peek(4)[:4]
    expected = packings[-1] if packings else ""
    unpacked: Any
    if head.startswith(_GZIP):
        kind, unpacked = ".gz", gzip.GzipFile(fileobj=file.stream)
    elif head == _ZSTD:
        kind, unpacked = ".zst", pa.CompressedInputStream(file.stream, "zstd")
    elif head in _ZIP:
        yield from _members(file, layer)
        return
    else:
        if expected and head:
            file.note = _joined(file.note, f"not packed although it is called {expected}")
        yield file
        return
    if layer >= MOST_LAYERS:
        raise _unsafe(file.where, f"packed more than {MOST_LAYERS} times")
    note = file.note if expected == kind else _joined(file.note, f"packed like a {kind} file")
    stream = guarded(unpacked, file.where, packed_bytes)
    inner = OpenFile(file.name, file.where, stream, note)
    yield from _unpacked(inner, packed_bytes, packings[:-1], layer + 1)


def _members(file: OpenFile, layer: int) -> Iterator[OpenFile]:
    """The files of rows in a zip, in name order. Nothing is ever written to disk."""
    if layer:
        raise _unsafe(file.where, "a zip inside another archive")
    try:
        archive = zipfile.ZipFile(file.stream)
    except _BROKEN as error:
        raise broken_file(file.where, str(error)) from error
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    for name in members:
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name[:3]:
            raise _unsafe(file.where, f"a member is called {name!r}, which points out of it")
    chosen, others = choose_data_files(members)
    if not chosen:
        raise InputError(
            "the archive holds no data file",
            f"{file.where}: {', '.join(sorted(members)[:5]) or 'empty'}",
            f"put files into it that end in {', '.join(DATA_ENDINGS)}",
            "empty-archive",
        )
    note = _joined(file.note, left_out(others))
    for name in chosen:
        info, where = members[name], f"{file.where}/{name}"
        if info.flag_bits & 1:
            raise InputError(
                "the archive is encrypted",
                where,
                f"unzip {file.where}   (asks for the password), then give the folder",
                "encrypted-archive",
            )
        try:
            member = archive.open(info)
        except _BROKEN as error:
            raise broken_file(where, str(error)) from error
        with member:
            stream = guarded(member, where, info.compress_size)
            inner = OpenFile(f"{file.name}/{name}", where, stream, note)
            yield from _unpacked(inner, info.compress_size, _packings(name), layer + 1)
        note = ""


def left_out(names: list[str]) -> str:
    """A note about files that were not read; empty for none."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"not read: {', '.join(names[:3])}{more}" if names else ""


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _unsafe(where: str, what: str) -> InputError:
    return InputError(
        "the archive is not one of plain data files",
        f"{where}: {what}",
        "unpack it yourself, look at what is inside, and give the folder",
        "unsafe-archive",
    )


def guarded(inner: IO[bytes], where: str, packed_bytes: int) -> io.BufferedReader:
    """`inner` as a buffered stream whose failures are InputErrors that name the file.

    Args:
        inner: what is read from.
        where: the file, for messages.
        packed_bytes: its size before unpacking, against which bombs are told.
    """
    return io.BufferedReader(_Guarded(inner, where, packed_bytes), BUFFER)


class _Guarded(io.RawIOBase):
    def __init__(self, inner: IO[bytes], where: str, packed_bytes: int) -> None:
        self._inner = inner
        self._where = where
        self._packed_bytes = packed_bytes
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except _BROKEN as error:
            raise broken_file(self._where, f"after {self._count} bytes: {error}") from error
        self._count += len(data)
        if self._count > max(MOST_UNPACKED, MOST_RATIO * self._packed_bytes):
            raise _unsafe(
                self._where,
                f"{self._packed_bytes} bytes unpack to more than {self._count}",
            )
        buffer[: len(data)] = data
        return len(data)
