"""Malformed data: an InputError that names place and remedy, or counted bad rows; never a hang."""

from __future__ import annotations

import gzip
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from data_files import parquet_bytes, written, zip_bytes, zstd
from retone.config import SourceSection
from retone.data import archives, json_rows, lines
from retone.data.sources import BadRows, read_items, source_sha256
from retone.errors import InputError

SECONDS = 30  # for any of these, on a slow machine; nearly all take milliseconds
GOOD = '{"a": "one"}\n'


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Every test here must end within `SECONDS`."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS


def read(path: Path | str) -> tuple[int, BadRows]:
    bad = BadRows()
    return sum(1 for _ in read_items(SourceSection(path=str(path)), bad)), bad


def refused(path: Path | str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.problem
    assert caught.value.remedy
    return caught.value


def encrypted_zip() -> bytes:
    """A zip whose member is marked as encrypted, in both of its headers."""
    content = bytearray(zip_bytes({"a.jsonl": GOOD.encode()}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    return bytes(content)


def damaged_zip() -> bytes:
    """A zip whose member does not have the checksum that it should have."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jsonl", GOOD)
    return out.getvalue().replace(b"one", b"two")


# --- single rows that are counted ---

BAD_ROWS: dict[str, tuple[str, bytes | str, str]] = {
    "half an object": ("a.jsonl", GOOD + '{"a": "tw\n' + GOOD, "a.jsonl, line 2: not JSON (Unterm"),
    "text after it": ("a.jsonl", GOOD + '{"a": 1} x\n', "line 2: not JSON (more text at column 9"),
    "two in a line": ("a.jsonl", GOOD + '{"a": 1}{"a": 2}\n', "line 2: not JSON (more text at"),
    "a list": ("a.jsonl", GOOD + '["a", "b"]\n', "line 2: a JSON object is expected, found a list"),
    "a number": ("a.jsonl", GOOD + "17\n", "line 2: a JSON object is expected, found a number"),
    "null": ("a.jsonl", GOOD + "null\n", "line 2: a JSON object is expected, found null"),
    "NaN": ("a.jsonl", GOOD + '{"a": NaN}\n', "line 2: NaN is not JSON"),
    "minus infinity": ("a.jsonl", GOOD + '{"a": -Infinity}\n', "line 2: -Infinity is not JSON"),
    "repeated keys": ("a.jsonl", GOOD + '{"b": {"a": 1, "a": 2}}\n', 'the key "a" appears twice'),
    "half a character": ("a.jsonl", GOOD + '{"a": "\\ud83d"}\n', "half of a character: \\ud83d"),
    "NUL escaped": ("a.jsonl", GOOD + '{"a": "x\\u0000"}\n', "line 2: a NUL character"),
    "NUL in JSON": ("a.jsonl", GOOD * 99 + '{"a": "\0"}\n', "line 100: not JSON (Invalid control"),
    "deep nesting": ("a.jsonl", GOOD + "[" * 200_000 + "\n", "line 2: nested too deeply"),
    "an endless number": ("a.jsonl", GOOD + '{"a": ' + "1" * 9999 + "}\n", "line 2: not JSON"),
    "mark in the middle": ("a.jsonl", GOOD + "\ufeff" + GOOD, "line 2: a byte order mark inside"),
    "a list of lists": ("a.json", '[{"a": 1}, [1, 2]]', "a.json, row 2: a JSON object is expected"),
    "repeated keys in a list": ("a.json", '[{"a": 1}, {"a": 1, "a": 2}]', 'row 2: the key "a"'),
    "NaN in a list": ("a.json", '[{"a": 1}, {"a": NaN}]', "row 2: NaN is not JSON"),
    "too many values": ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv, line 3: 3 values for 2 columns"),
    "too few values": ("a.csv", "a,b\n1,2\n1\n", "line 3: 1 values for 2 columns"),
    "text after a quote": ("a.csv", 'a,b\n1,2\n1,"2"3\n4,5\n', "line 3: ',' expected after '\"'"),
    "a quote closed late": ("a.csv", 'a,b\n1,2\n3,"4\n5,"6"\n7,8\n', "in line 4, where a quote"),
    "mark in a table": ("a.csv", "a,b\n1,2\n\ufeff3,4\n", "line 3: a byte order mark inside"),
    "NUL in a table": ("a.csv", "a,b\n" + "1,2\n" * 200 + "\0,4\n", "line 202: a NUL byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_counted_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, told = BAD_ROWS[case]
    good, bad = read(written(tmp_path / name, content))
    assert bad.count == 1, bad.texts
    assert good >= 1
    assert told in bad.texts[0]
    error = bad.problems()
    assert (error.code, error.found) == ("broken-rows", bad.texts[0])
    assert error.problem == "1 row of the data cannot be used"
    assert "data.bad_rows=drop" in error.remedy


def test_many_bad_rows_are_counted_and_few_are_shown(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path / "a.jsonl", "[]\n" * 1000))
    assert (good, bad.count, len(bad.texts)) == (0, 1000, 5)
    error = bad.problems()
    assert error.problem == "1000 rows of the data cannot be used"
    assert error.found.endswith("(+995 more)")


# --- whole files that are refused ---

REFUSED: dict[str, tuple[str, bytes | str, str, str]] = {
    "empty": ("a.jsonl", "", "empty-data", "0 bytes"),
    "spaces only": ("a.jsonl", " \n\n \t\n", "empty-data", "a.jsonl"),
    "spaces only, JSON": ("a.json", " \n", "empty-data", "a.json"),
    "spaces only, text": ("a.txt", " \n", "empty-data", "a.txt"),
    "an empty list": ("a.json", "[]", "empty-data", "a.json"),
    "a header only": ("a.csv", "prompt,completion\n", "empty-data", "a.csv"),
    "an empty gz": ("a.jsonl.gz", gzip.compress(b""), "empty-data", "a.jsonl.gz"),
    "JSON cut short": ("a.json", '[{"a": 1},\n {"a": "tw', "broken-json", "line 2: Unterminated"),
    "JSON cut in a list": ("a.json", '[{"a": 1}', "broken-json", "after element 1 the file ends"),
    "JSON cut after a key": ("a.json", '[{"a": ', "broken-json", "where the file ends"),
    "JSON with a comma left": ("a.json", '[{"a": 1},\n]', "broken-json", "line 2: Expecting value"),
    "JSON without a comma": ("a.json", '[{"a": 1}\n{"a": 2}]', "broken-json", "goes on with '{'"),
    "two lists": ("a.json", '[{"a": 1}]\n[{"a": 2}]', "broken-json", "line 2: '[' after the end"),
    "a number": ("a.json", "17", "broken-json", "a list of objects is expected: 17"),
    "text": ("a.json", '"hello"', "broken-json", "a list of objects is expected"),
    "CSV called JSON": ("a.json", "a,b\n1,2\n", "broken-json", "line 1: Expecting value"),
    "deep nesting": ("a.json", "[" + '{"a":' * 200_000, "broken-json", "nested too deeply"),
    "bytes that are not UTF-8": ("a.jsonl", GOOD.encode() + b'{"a": "caf\xe9"}', "not-utf8",
                                 "line 2: byte 0xe9 at 11 of the line"),
    "the same in a list": ("a.json", b'[{"a": 1},\n{"a": "caf\xe9"}]', "not-utf8",
                           "line 2: byte 0xe9 at 11 of the line"),
    "the same in a table": ("a.csv", b"a,b\n1,caf\xe9\n", "not-utf8", "line 2: byte 0xe9 at 6"),
    "the same in text": ("a.txt", b"one\ncaf\xe9", "not-utf8", "line 2: byte 0xe9 at 4"),
    "UTF-16 without a mark": ("a.csv", "name,text\n1,2\n".encode("utf-16-le"), "not-utf8",
                              "UTF-16LE without a byte order mark"),
    "UTF-16 cut short": ("a.csv", "a,b\n1,2\n".encode("utf-16")[:-1], "broken-file", "a.csv"),
    "a binary file": ("a.txt", b"\x7fELF\0\0\x01", "not-text", "a NUL byte at 5"),
    "a quote never closed": ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', "unclosed-quote", ", line 3:"),
    "two columns of one name": ("a.csv", "a,b,a\n1,2,3\n", "repeated-column", "'a'"),
    "another program's file": ("a.xlsx", zip_bytes({"xl/a.xml": b"<a/>"}), "unknown-file-kind",
                               "ending '.xlsx'"),
    "an unknown ending": ("a.dat", "hello world\n", "unknown-file-kind", "ending '.dat'"),
    "no ending": ("rows", "hello, world\nthis, or, that\n", "unknown-file-kind", "no ending"),
    "a packed tar": ("a.tar.gz", gzip.compress(b"tar"), "unknown-file-kind", "ending '.tar'"),
    "gz cut short": ("a.jsonl.gz", gzip.compress(GOOD.encode())[:-9], "broken-file", "a.jsonl.gz"),
    "gz damaged": ("a.jsonl.gz", gzip.compress(GOOD.encode())[:12] + b"?" * 9, "broken-file", "a."),
    "gz header only": ("a.jsonl.gz", b"\x1f\x8b", "broken-file", "a.jsonl.gz"),
    "zst cut short": ("a.jsonl.zst", zstd(os.urandom(9999).hex().encode())[:-9], "broken-file",
                      "Truncated compressed stream"),
    "zst damaged": ("a.csv.zst", zstd(b"a,b\n1,2\n")[:6] + b"?" * 40, "broken-file", "a.csv.zst"),
    "packed too often": ("a.jsonl.gz", gzip.compress(gzip.compress(gzip.compress(gzip.compress(
        GOOD.encode())))), "unsafe-archive", "more than 3 times"),
    "an empty zip": ("a.zip", zip_bytes({}), "empty-archive", "empty"),
    "a zip without data": ("a.zip", zip_bytes({"a.png": b"x"}), "empty-archive", "a.png"),
    "zip cut short": ("a.zip", zip_bytes({"a.jsonl": GOOD.encode()})[:-9], "broken-file", "a.zip"),
    "zip damaged": ("a.zip", damaged_zip(), "broken-file", "a.zip/a.jsonl"),
    "zip encrypted": ("a.zip", encrypted_zip(), "encrypted-archive", "a.zip/a.jsonl"),
    "zip in a zip": ("a.zip", zip_bytes({"b.zip": zip_bytes({"a.jsonl": b"{}"})}), "unsafe-archive",
                     "a zip inside another"),
    "zip with names outside": ("a.zip", zip_bytes({"../../etc/a.jsonl": b"{}"}), "unsafe-archive",
                               "points out of it"),
    "zip with a root name": ("a.zip", zip_bytes({"/etc/a.jsonl": b"{}"}), "unsafe-archive",
                             "'/etc/a.jsonl'"),
    "Parquet cut short": ("a.parquet", parquet_bytes(pa.table({"a": ["x"]}))[:-9], "broken-file",
                          "a.parquet"),
    "not Parquet": ("a.parquet", GOOD, "broken-file", "a.parquet"),
    "Parquet without rows": ("a.parquet", parquet_bytes(pa.table({"a": pa.array([], pa.string())})),
                             "empty-data", "a.parquet"),
    "Arrow cut short": ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "broken-file", "a.arrow"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, case: str) -> None:
    name, content, code, found = REFUSED[case]
    path = written(tmp_path / name, content)
    error = refused(path)
    assert error.code == code, str(error)
    assert found in error.found
    assert str(path) in error.found


def test_the_remedy_for_other_encodings_can_be_typed(tmp_path: Path) -> None:
    error = refused(written(tmp_path / "a.csv", b"a,b\n\xe9,2\n"))
    assert error.remedy == "iconv -f latin1 -t utf-8 a.csv > a.utf8.csv"
    error = refused(written(tmp_path / "a.csv", "name,text\n1,2\n".encode("utf-16-be")))
    assert error.remedy == "iconv -f UTF-16BE -t utf-8 a.csv > a.utf8.csv"


def test_damaged_data_inside_parquet(tmp_path: Path) -> None:
    content = bytearray(parquet_bytes(pa.table({"a": [f"row {n}" * 9 for n in range(999)]})))
    content[20:400] = b"?" * 380
    error = refused(written(tmp_path / "a.parquet", bytes(content)))
    assert (error.code, "after row 0" in error.found) == ("broken-file", True)


# --- sizes ---


def test_a_row_of_ten_megabytes_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    row = json.dumps({"a": "x" * 10_000_000})
    assert read(written(tmp_path / "a.jsonl", f"{row}\n{row}"))[0] == 2
    assert read(written(tmp_path / "a.json", f"[{row},{row}]"))[0] == 2
    (tmp_path / "a.json").unlink()
    too_long = written(tmp_path / "a.jsonl", GOOD + '{"a": "' + "x" * lines.MOST_ROW_BYTES + '"}')
    error = refused(too_long)
    assert error.code == "row-too-large"
    assert "64 MB" in error.problem
    assert error.found == f"{too_long}, line 2"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"a": 1},\n {"a": "' + "x" * 9_000_000),
        ("a.csv", 'a,b\n1,"' + "x" * 9_000_000),
        ("a.txt", "x" * 9_000_000),
    ],
)
def test_rows_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    for module in (lines, json_rows):
        monkeypatch.setattr(module, "MOST_ROW_BYTES", 1_000_000)
    monkeypatch.setattr("retone.data.readers.MOST_ROW_BYTES", 1_000_000)
    assert refused(written(tmp_path / name, content)).code == "row-too-large"


@pytest.mark.parametrize("pack", [gzip.compress, zstd, lambda data: zip_bytes({"a.jsonl": data})])
def test_bombs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 2_000_000)
    line = b'{"a": "%s"}\n' % (b"x" * 100_000)
    bomb = written(tmp_path / "a.packed", pack(line * 100))
    error = refused(bomb)
    assert error.code == "unsafe-archive"
    assert f"{bomb}" in error.found
    assert "bytes unpack to more than" in error.found
    monkeypatch.setattr(archives, "MOST_RATIO", 1e9)
    assert read(bomb)[0] == 100


def test_the_limits_leave_room_for_real_data() -> None:
    assert archives.MOST_UNPACKED >= lines.MOST_ROW_BYTES
    assert archives.MOST_RATIO >= 50


# --- what is no file ---


def test_a_folder_without_data(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert (error.code, "empty" in error.found) == ("no-data-in-folder", True)
    written(tmp_path / "README.md", "x")
    written(tmp_path / "sub/photo.png", "x")
    assert "sub/photo.png" in refused(tmp_path).found


def test_a_folder_called_like_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    assert refused(folder).code == "no-data-in-folder"
    written(folder / "a.jsonl", GOOD)
    assert read(folder)[0] == 1


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert refused(tmp_path / "a.jsonl").code == "unreadable-file"
    assert refused(tmp_path).code == "no-data-in-folder"
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    written(tmp_path / "c.jsonl", GOOD)
    good, bad = read(tmp_path)
    assert good == 1
    assert bad.notes == [f"{tmp_path.name}: not read: a.jsonl, b.jsonl, up"]


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "a link to nowhere" in refused(tmp_path / "a.jsonl").found


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    error = refused(tmp_path / "a.jsonl")
    assert (error.code, "a pipe" in error.found) == ("not-a-file", True)
    assert refused(tmp_path).code == "no-data-in-folder"
    assert refused("/dev/zero").code == "not-a-file"
    written(tmp_path / "b.jsonl", GOOD)
    assert read(tmp_path)[0] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(tmp_path: Path) -> None:
    path = written(tmp_path / "d/a.jsonl", GOOD)
    path.chmod(0)
    error = refused(path)
    assert (error.code, error.remedy) == ("unreadable-file", f"chmod u+r {path}")
    with pytest.raises(InputError):
        source_sha256(SourceSection(path=str(path)))
    path.parent.chmod(0)
    assert refused(path).code == "unreadable-file"
    assert refused(path.parent).code == "unreadable-file"
    path.parent.chmod(0o700)


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_permission(path: Path) -> io.FileIO:
        raise PermissionError(13, "Permission denied", str(path))

    path = written(tmp_path / "a.jsonl", GOOD)
    monkeypatch.setattr(archives.io, "FileIO", no_permission)
    error = refused(path)
    assert (error.code, error.remedy) == ("unreadable-file", f"chmod u+r {path}")
    monkeypatch.setattr("retone.data.sources.file_sha256", no_permission)
    with pytest.raises(InputError, match="Permission denied"):
        source_sha256(SourceSection(path=str(path)))


@pytest.mark.parametrize("name", ["a\0b.jsonl", "x" * 5000])
def test_names_that_no_file_can_have(name: str) -> None:
    assert refused(name).code == "unreadable-file"


def test_there_are_more_than_thirty_malformed_inputs() -> None:
    assert len(BAD_ROWS) + len(REFUSED) > 60
