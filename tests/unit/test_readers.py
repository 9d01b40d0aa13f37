"""Every kind of file however packed, what its content says against its ending, and encodings."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_files import (
    CONTENTS,
    LINES,
    ROWS,
    TABLE,
    items,
    notes,
    parquet_bytes,
    values,
    written,
    zip_bytes,
    zstd,
)
from retone.data.archives import DATA_ENDINGS
from retone.data.readers import READERS
from retone.data.sources import BadRows
from retone.errors import InputError

# --- kinds ---


def test_every_ending_has_a_reader() -> None:
    assert set(READERS) == set(DATA_ENDINGS)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".zip"])
def test_every_kind_however_packed(tmp_path: Path, name: str, packing: str) -> None:
    path, content = tmp_path / (name + packing), CONTENTS[name]
    if packing == ".zip":
        path.write_bytes(zip_bytes({name: content}))
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packing]
        path.write_bytes(pack(content))
    found = items(path)
    assert [item.values for item in found] == ROWS
    assert {item.file for item in found} == {
        f"{path.name}/{name}" if packing == ".zip" else path.name
    }
    first = 2 if name in ("a.csv", "a.tsv") else 1
    assert [item.number for item in found] == list(range(first, first + 5))
    assert notes(path) == []


def test_text_is_one_row(tmp_path: Path) -> None:
    assert values(written(tmp_path / "a.txt", "One.\n\nTwo.")) == [{"text": "One.\n\nTwo."}]
    assert values(written(tmp_path / "a.md", "# {}")) == [{"text": "# {}"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"version": 2, "data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ('{"rows": [{"a": 1}], "names": ["a"]}', [{"a": 1}]),
        ('{"a": 1, "b": ["x"]}', [{"a": 1, "b": ["x"]}]),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', [{"a": 1}, {"a": 2}]),
        (
            '{"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "t"}]}',
            [{"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "t"}]}],
        ),
        ('{"conversations": [{"from": "human", "value": "x"}]}',
         [{"conversations": [{"from": "human", "value": "x"}]}]),
    ],
)  # fmt: skip
def test_shapes_of_json(tmp_path: Path, text: str, expected: list[dict[str, Any]]) -> None:
    assert values(written(tmp_path / "a.json", text)) == expected


def test_several_lists_in_an_object_are_not_guessed_at(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}')
    with pytest.raises(InputError) as caught:
        items(path)
    assert caught.value.code == "several-lists"
    assert "train, test" in caught.value.found
    assert "jq -c '.train[]'" in caught.value.remedy


def test_json_that_is_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    rows = [{"n": number, "text": "é" * (number % 7), "long": "x" * 200} for number in range(9000)]
    assert values(written(tmp_path / "a.json", json.dumps(rows, indent=1))) == rows
    whole = json.dumps({"data": rows}, ensure_ascii=False)
    assert values(written(tmp_path / "b.json", whole)) == rows


def test_values_of_parquet_are_those_of_json(tmp_path: Path) -> None:
    row = {
        "text": "a",
        "turns": [{"role": "user", "content": "hi"}],
        "score": 1.5,
        "missing": float("nan"),
        "day": datetime.date(2026, 1, 2),
        "price": Decimal("1.50"),
        "picture": b"\xff\xd8",
        "sound": {"bytes": b"x", "path": "a.wav"},
    }
    path = written(tmp_path / "a.parquet", parquet_bytes(pa.Table.from_pylist([row])))
    bad = BadRows()
    (item,) = items(path, bad)
    plain = {"missing": None, "day": "2026-01-02", "price": "1.50"}
    assert item.values == {"text": "a", "turns": row["turns"], "score": 1.5} | plain
    assert json.loads(json.dumps(item.values)) == item.values
    assert bad.notes == ["a.parquet: columns of bytes left out: picture, sound"]


# --- endings that say something else than the content ---


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", LINES, ["a.json: read as JSON lines"]),
        ("a.jsonl", json.dumps(ROWS, indent=2), ["a.jsonl: read as JSON"]),
        ("a.jsonl", json.dumps(ROWS), ["a.jsonl: read as JSON"]),
        (
            "a.jsonl",
            "\n".join(json.dumps(row, indent=2) for row in ROWS),
            ["a.jsonl: read as JSON"],
        ),
        ("a.txt", LINES, ["a.txt: read as JSON lines"]),
        ("a.csv", LINES, ["a.csv: read as JSON lines"]),
        ("a.csv", TABLE.replace(b",", b";"), ["a.csv: semicolons between the columns"]),
        ("a.csv", TABLE.replace(b",", b"\t"), ["a.csv: tabs between the columns"]),
        ("a.tsv", TABLE, ["a.tsv: commas between the columns"]),
        ("a.data", LINES, ["a.data: read as JSON lines"]),
        ("rows", json.dumps(ROWS), ["rows: read as JSON"]),
        ("rows", TABLE, ["rows: read as CSV"]),
        ("a.csv", CONTENTS["a.parquet"], ["a.csv: read as Parquet"]),
        ("a.jsonl", gzip.compress(LINES), ["a.jsonl: packed like a .gz file"]),
        ("a.jsonl.gz", LINES, ["a.jsonl.gz: not packed although it is called .gz"]),
    ],
)
def test_the_content_wins_and_is_told(
    tmp_path: Path, name: str, content: bytes | str, told: list[str]
) -> None:
    path = written(tmp_path / name, content)
    assert values(path) == ROWS
    assert notes(path) == told


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8-sig", b""), ("utf-16", b""), ("utf-16-be", b"\xfe\xff"), ("utf-32", b"")],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt"])
def test_encodings_with_a_mark(tmp_path: Path, encoding: str, mark: bytes, name: str) -> None:
    text = {
        "a.csv": "a,b\né\u2028,😀\n",
        "a.jsonl": '{"a": "é\u2028", "b": "😀"}\n',
        "a.json": '[{"a": "é\u2028", "b": "😀"}]',
        "a.txt": "é😀",
    }[name]
    path = written(tmp_path / name, mark + text.encode(encoding))
    expected = {"text": "é😀"} if name == "a.txt" else {"a": "é\u2028", "b": "😀"}
    assert values(path) == [expected]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_quotes(tmp_path: Path, end: str) -> None:
    table = end.join(["a,b", '"x, ""y""","two', 'lines"', "", "p,q"])
    found = items(written(tmp_path / "a.csv", table))
    assert [item.values for item in found] == [
        {"a": 'x, "y"', "b": f"two{end}lines"},
        {"a": "p", "b": "q"},
    ]
    assert [item.number for item in found] == [2, 5]
    rows = end.join(['{"a": 1}', "", '{"a": 2}'])
    assert [item.number for item in items(written(tmp_path / "a.jsonl", rows))] == [1, 3]
