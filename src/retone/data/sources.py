"""What the path of a source means: files in a stable order, and the rows that stand in them.

file, .gz .zst .zip of it        folder, glob            a folder saved by `datasets`
bundled:DATASET/FILE             hub:ORG/NAME            - (standard input)
"""

from __future__ import annotations

import atexit
import functools
import glob
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath

from retone.config import BUNDLED, HUB, STDIN, SourceSection
from retone.data.archives import (
    DATA_ENDINGS,
    DataFile,
    choose_data_files,
    data_ending,
    left_out,
    open_files,
)
from retone.data.hub import dataset_files
from retone.data.lines import Row
from retone.data.readers import read_rows
from retone.errors import InputError, nearest
from retone.run_dir import file_sha256

__all__ = ["BadRows", "Item", "Row", "read_items", "source_path", "source_sha256"]

SHOWN = 5  # problems listed one by one; the rest is counted
MOST_STDIN_BYTES = 100_000_000_000
_ELEMENT_ENDINGS = (".json", ".parquet", ".arrow")  # their rows are counted, not their lines


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a file.

    Attributes:
        values: column or key -> value.
        file: as shown to people: its name, below the folder or archive that the source names.
        number: 1-based line in that file for lines of text, 1-based element otherwise.
    """

    values: Row
    file: str
    number: int


@dataclass
class BadRows:
    """Rows that cannot be used, all counted, and what was taken for granted on the way.

    Attributes:
        count: rows.
        texts: the first few, each with its place.
        notes: what people should know of files that were read, for example that a .csv has
            semicolons, or which files of a folder were not read.
    """

    count: int = 0
    texts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: str, number: int, what: str) -> None:
        """Count one row; `number` as in `Item`."""
        self.count += 1
        if len(self.texts) < SHOWN:
            unit = "row" if data_ending(file) in _ELEMENT_ENDINGS else "line"
            self.texts.append(f"{file}, {unit} {number}: {what}")

    def note(self, file: str, what: str) -> None:
        """Keep what was taken for granted about a file, once."""
        text = f"{file}: {what}"
        if text not in self.notes:
            self.notes.append(text)

    def problems(self) -> InputError:
        """One error for all of them."""
        more = f" (+{self.count - len(self.texts)} more)" if self.count > len(self.texts) else ""
        return InputError(
            f"{self.count} row{'s' if self.count > 1 else ''} of the data cannot be used",
            "; ".join(self.texts) + more,
            "mend or delete those rows, or leave them out: --set data.bad_rows=drop",
            "broken-rows",
        )


def read_items(source: SourceSection, bad: BadRows) -> Iterator[Item]:
    """The rows of a source one by one, in flat memory and the same order each time.

    Args:
        source: where they are; its format and columns are not looked at.
        bad: collects the rows that cannot be read, which are left out here.

    Raises:
        InputError: there is no such source, it holds no data or no rows, or a file of it is
            damaged, packed in a way that is not read, or no text.
    """
    files, notes = _files(source)
    for name, what in notes:
        bad.note(name, what)
    before, found = bad.count, 0
    for file in files:
        for opened in open_files(file):
            note, rows = read_rows(opened)
            if note:
                bad.note(opened.name, note)
            for number, row in rows:
                if isinstance(row, str):
                    bad.add(opened.name, number, row)
                else:
                    found += 1
                    yield Item(row, opened.name, number)
    if not found and bad.count == before:
        size = sum(file.path.stat().st_size for file in files)
        raise InputError(
            "the data has no rows",
            f"{source.path}: {len(files)} file{'s' if len(files) > 1 else ''}, {size} bytes",
            "check the file",
            "empty-data",
        )


def source_sha256(source: SourceSection) -> str:
    """sha256 over the names and bytes of the files that `read_items` would read.

    Files of a hub dataset count by its commit instead of their bytes.

    Raises:
        InputError, MachineError: as `read_items` for a source that cannot be found.
    """
    files, _ = _files(source)
    total = hashlib.sha256()
    for file in files:
        try:
            content = file.commit or file_sha256(file.path)
        except OSError as error:
            raise _not_openable(str(file.path), error.strerror or str(error)) from error
        total.update(f"{file.name} {content}\n".encode())
    return total.hexdigest()


def source_path(name: str) -> Path:
    """The file or folder behind `bundled:DATASET/FILE` or a path.

    Raises:
        InputError: there is none, or it is no regular file (a pipe, a device).
    """
    if name.startswith(BUNDLED):
        folder = Path(str(resources.files("retone") / "datasets"))
        path = folder / name.removeprefix(BUNDLED)
        options = [BUNDLED + str(file.relative_to(folder)) for file in folder.glob("*/*.jsonl")]
    else:
        path = Path(name).expanduser()
        options = _neighbours(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        dangling = " (a link to nowhere)" if path.is_symlink() else ""
        raise InputError(
            "there is no such data file",
            f"{name}{dangling}{nearest(name, options)}",
            "check the path: relative paths belong to the recipe's folder",
            "no-data-file",
        ) from None
    except (OSError, ValueError) as error:  # no permission, links in a circle, a NUL in the name
        what = getattr(error, "strerror", None) or str(error)
        raise _not_openable(name, what) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            "the data is not in a regular file",
            f"{name}: a {'pipe' if stat.S_ISFIFO(mode) else 'device or socket'}",
            "give standard input instead: COMMAND | retone ... --train -",
            "not-a-file",
        )
    return path


def _files(source: SourceSection) -> tuple[list[DataFile], list[tuple[str, str]]]:
    """The files of a source in their order, and notes (file, what) about it."""
    if source.path == STDIN:
        return [DataFile(_spooled_stdin(), "stdin")], []
    if source.path.startswith(HUB):
        return dataset_files(source), []
    if glob.has_magic(source.path) and not os.path.lexists(source.path):
        return _matched(source.path)
    path = source_path(source.path)
    if not path.is_dir():
        return [DataFile(path, path.name)], []
    # os.path, here and below, answers False where pathlib raises for a folder that is closed.
    if any(os.path.isfile(path / name) for name in ("dataset_dict.json", "state.json")):
        return _saved_dataset(path, source.split), []
    return _chosen(path, _walk(path))


def _matched(pattern: str) -> tuple[list[DataFile], list[tuple[str, str]]]:
    """What a glob matches, in name order; a folder among it stands for the files below it."""
    pattern = os.path.expanduser(pattern)
    fixed = next(path for path in Path(pattern).parents if not glob.has_magic(str(path)))
    found: set[Path] = set()
    for match in map(Path, glob.glob(pattern, recursive=True)):
        found.update(_walk(match) if os.path.isdir(match) else [match])
    if not found:
        raise InputError(
            "no data file matches the pattern",
            f"{pattern}{nearest(pattern, _neighbours(Path(pattern)))}",
            "check the pattern, in quotes so that the shell leaves it alone",
            "no-data-file",
        )
    return _chosen(fixed, found)


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, and the links to folders, which are not followed."""
    for place, below, files in os.walk(folder, onerror=_refuse):
        yield from (Path(place, name) for name in files)
        yield from (path for name in below if (path := Path(place, name)).is_symlink())


def _chosen(folder: Path, paths: Iterable[Path]) -> tuple[list[DataFile], list[tuple[str, str]]]:
    """The files of rows among what was found in a folder, and a note about the others."""
    shown = {path.relative_to(folder).as_posix(): os.path.isfile(path) for path in paths}
    names, others = choose_data_files(name for name, is_file in shown.items() if is_file)
    if not names:
        raise InputError(
            "the folder holds no data file",
            f"{folder}: {', '.join(sorted(shown)[:SHOWN]) or 'empty'}",
            f"put files into it that end in {', '.join(DATA_ENDINGS)}",
            "no-data-in-folder",
        )
    note = left_out(others + sorted(name for name, is_file in shown.items() if not is_file))
    found = [DataFile(folder / name, str(PurePosixPath(folder.name, name))) for name in names]
    return found, [(folder.name, note)] if note else []


def _saved_dataset(folder: Path, split: str) -> list[DataFile]:
    """The Arrow files of a folder made by `save_to_disk` of the library `datasets`.

    Its layout: dataset_dict.json names the splits, each a folder; state.json there names files.
    """
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            if split not in splits:
                raise InputError(
                    f"the saved dataset has no split {split}{nearest(split, splits)}",
                    f"{folder}: {', '.join(splits)}",
                    f'set split = "{splits[0]}" for this source' if splits else "save it again",
                    "unknown-split",
                )
            folder = folder / split
        files = json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]
        names = [PurePosixPath(file["filename"]).name for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the saved dataset is not whole",
            f"{folder}: {type(error).__name__} {error}",
            "save it again with save_to_disk",
            "broken-file",
        ) from error
    return [DataFile(source_path(str(folder / name)), f"{folder.name}/{name}") for name in names]


@functools.cache
def _spooled_stdin() -> Path:
    """Standard input as a file that lives as long as the process: it can be read only once."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "nothing is piped into standard input",
            "- stands for it",
            "COMMAND | retone ... --train -",
            "no-stdin",
        )
    folder = tempfile.mkdtemp(prefix="retone-stdin-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "stdin")
    copied = 0
    with path.open("wb") as spool:
        while data := sys.stdin.buffer.read(1 << 20):
            copied += len(data)
            if copied > MOST_STDIN_BYTES:
                raise _not_openable("stdin", f"more than {MOST_STDIN_BYTES // 10**9} GB came in")
            spool.write(data)
    return path


def _neighbours(path: Path) -> list[str]:
    try:
        return [str(path.parent / name) for name in os.listdir(path.parent)]
    except (OSError, ValueError):
        return []


def _refuse(error: OSError) -> None:
    raise _not_openable(str(error.filename), error.strerror or str(error)) from error


def _not_openable(name: str, what: str) -> InputError:
    return InputError(
        "the data cannot be opened", f"{name!r}: {what}", "check its name and rights",
        "unreadable-file",
    )  # fmt: skip
