"""Data files that tests make, and the rows that come out of them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retone.config import SourceSection
from retone.data.sources import BadRows, Item, read_items

ROWS = [{"prompt": f"say {number}", "completion": f"it is {number}"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = b"prompt,completion\n" + b"".join(f"say {n},it is {n}\n".encode() for n in range(5))


def items(path: Path | str, bad: BadRows | None = None, **fields: Any) -> list[Item]:
    """All rows of a source; no bad rows unless `bad` is given."""
    found = BadRows() if bad is None else bad
    read = list(read_items(SourceSection(path=str(path), **fields), found))
    if bad is None:
        assert found.count == 0, found.texts
    return read


def values(path: Path | str, **fields: Any) -> list[dict[str, Any]]:
    return [item.values for item in items(path, **fields)]


def notes(path: Path | str) -> list[str]:
    bad = BadRows()
    items(path, bad)
    return bad.notes


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zip_bytes(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2)
    return out.getvalue()


def arrow_bytes(rows: list[dict[str, Any]], *, stream: bool) -> bytes:
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


# The same rows in every kind of file, by a name for it.
CONTENTS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": TABLE,
    "a.tsv": TABLE.replace(b",", b"\t"),
    "a.parquet": parquet_bytes(pa.Table.from_pylist(ROWS)),
    "a.arrow": arrow_bytes(ROWS, stream=True),
    "file.arrow": arrow_bytes(ROWS, stream=False),
}
