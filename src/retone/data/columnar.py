"""Rows from Parquet and Arrow files, some hundred at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retone.data.archives import OpenFile, broken_file
from retone.data.lines import Read
from retone.errors import InputError

ROWS_AT_ONCE = 256


def read_parquet(file: OpenFile) -> tuple[str, Iterator[Read]]:
    """A note about columns left out, and (row number, row) by row groups.

    Numbers, text, lists and structures come as JSON has them; dates and decimals as text. Columns
    of bytes (pictures, sound) are left out.

    Raises:
        InputError: the file is damaged, or two columns have the same name.
    """
    with _seekable(file) as stream:
        parquet = pq.ParquetFile(stream)
        readable, note = _columns(file, parquet.schema_arrow)
        batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=readable)
    return note, _rows(file, stream, batches, readable)


def read_arrow(file: OpenFile) -> tuple[str, Iterator[Read]]:
    """The same for an Arrow file or stream."""
    with _seekable(file) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        if is_file:
            whole = pa.ipc.open_file(stream)
            schema = whole.schema
            batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
        else:
            reader = pa.ipc.open_stream(stream)
            schema, batches = reader.schema, iter(reader)
        readable, note = _columns(file, schema)
    return note, _rows(file, stream, batches, readable)


@contextmanager
def _seekable(file: OpenFile) -> Iterator[IO[bytes]]:
    """The file, or its copy on disk where it comes out of an archive; closed after a failure."""
    stream: IO[bytes] = file.stream
    if not stream.seekable():
        stream = tempfile.TemporaryFile()  # noqa: SIM115 (the rows are read from it later)
    try:
        if stream is not file.stream:
            shutil.copyfileobj(file.stream, stream, 1 << 20)
            stream.seek(0)
        yield stream
    except (pa.ArrowException, OSError) as error:
        stream.close()
        raise broken_file(file.where, _first_line(error)) from error
    except BaseException:
        stream.close()
        raise


def _columns(file: OpenFile, schema: pa.Schema) -> tuple[list[str], str]:
    """The columns that can be read, and a note about the others."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(
            "two columns of the data file have the same name",
            f"{file.where}: {', '.join(twice)}",
            "give each column a name of its own",
            "repeated-column",
        )
    readable = [field.name for field in schema if not _has_bytes(field.type)]
    others = [name for name in schema.names if name not in readable]
    return readable, f"columns of bytes left out: {', '.join(others)}" if others else ""


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return True
    return any(_has_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _rows(
    file: OpenFile, stream: IO[bytes], batches: Iterable[pa.RecordBatch], readable: list[str]
) -> Iterator[Read]:
    number = 0
    with stream:
        try:
            for batch in batches:
                columns = {name: _plain(batch.column(name)) for name in readable}
                plain = pa.table(columns)
                for start in range(0, plain.num_rows, ROWS_AT_ONCE):
                    part = plain.slice(start, ROWS_AT_ONCE)
                    for row in part.to_pylist(maps_as_pydicts="lossy"):
                        number += 1
                        yield number, row
        except (pa.ArrowException, OSError) as error:
            raise broken_file(file.where, f"after row {number}: {_first_line(error)}") from error


def _plain(column: pa.Array) -> pa.Array:
    """The column in types that JSON knows; what is not a number (NaN) is nothing."""
    kind = column.type
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(column), None, column)
    return column


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
