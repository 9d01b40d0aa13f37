"""Rows from files: JSONL, JSON, CSV, TSV. All problems of a file are reported at once."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from retone.config import BUNDLED
from retone.errors import InputError, nearest

Row = dict[str, Any]
SHOWN = 5  # problems listed one by one; the rest is counted


def source_path(name: str) -> Path:
    """The file behind `bundled:DATASET/FILE` or a path; InputError where there is none."""
    if name.startswith(BUNDLED):
        folder = Path(str(resources.files("retone") / "datasets"))
        path = folder / name.removeprefix(BUNDLED)
        options = [BUNDLED + str(file.relative_to(folder)) for file in folder.glob("*/*.jsonl")]
    else:
        path = Path(name)
        options = [str(file) for file in path.parent.glob("*")] if path.parent.is_dir() else []
    if path.is_file():
        return path
    raise InputError(
        "there is no such data file",
        f"{name}{nearest(name, options)}",
        "check the path: relative paths belong to the recipe's folder",
        "no-data-file",
    )


def read_rows(path: Path) -> list[Row]:
    """Every row of a file as a dict.

    Raises InputError for an unknown ending, an empty file, text that is not UTF-8, and rows that
    cannot be read (each named with its line).
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise InputError(
            "this kind of data file is not read",
            f"{path}: ending {path.suffix!r}",
            f"save it as one of {known}",
            "unknown-file-kind",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            "the data file is not UTF-8",
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} at {error.start}",
            f"iconv -f latin1 -t utf-8 {path.name} > {path.stem}.utf8{path.suffix}",
            "not-utf8",
        ) from error
    problems: list[str] = []
    rows = reader(text, problems)
    if problems:
        raise broken_rows(path, problems)
    if not rows:
        raise InputError(
            "the data file has no rows",
            f"{path}: {len(text)} characters",
            "check the file",
            "empty-data",
        )
    return rows


def broken_rows(path: Path | str, problems: list[str]) -> InputError:
    """One error for all broken rows of a file."""
    more = f" (+{len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
    return InputError(
        f"{len(problems)} row{'s' if len(problems) > 1 else ''} of the data file cannot be used",
        f"{path}: " + "; ".join(problems[:SHOWN]) + more,
        "mend or delete those rows",
        "broken-rows",
    )


def _read_jsonl(text: str, problems: list[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno})")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"line {number}: a JSON object is expected, found {line[:40]!r}")
    return rows


def _read_json(text: str, problems: list[str]) -> list[Row]:
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"line {error.lineno}: not JSON ({error.msg} at column {error.colno})")
        return []
    if not isinstance(value, list):
        problems.append(f"a list of objects is expected, found {type(value).__name__}")
        return []
    problems.extend(
        f"row {number}: a JSON object is expected, found {str(row)[:40]!r}"
        for number, row in enumerate(value, 1)
        if not isinstance(row, dict)
    )
    return [row for row in value if isinstance(row, dict)]


def _read_separated(separator: str) -> Callable[[str, list[str]], list[Row]]:
    def read(text: str, problems: list[str]) -> list[Row]:
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter=separator, strict=True)
        rows: list[Row] = []
        try:
            for row in reader:
                extra = row.pop(None, None)
                missing = [name for name, value in row.items() if value is None]
                if extra or missing:
                    count = len(row) + len(extra or ()) - len(missing)
                    problems.append(
                        f"line {reader.line_num}: {count} values for {len(row)} columns"
                    )
                else:
                    rows.append(row)
        except csv.Error as error:
            problems.append(f"line {reader.line_num}: {error}")
        return rows

    return read


READERS: dict[str, Callable[[str, list[str]], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_separated(","),
    ".tsv": _read_separated("\t"),
}
