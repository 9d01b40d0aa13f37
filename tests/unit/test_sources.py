"""What a source's path means, in which order its rows come, and that they come in flat memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_files import (
    CONTENTS,
    LINES,
    ROWS,
    TABLE,
    arrow_bytes,
    items,
    values,
    written,
    zip_bytes,
)
from retone.config import SourceSection
from retone.data import sources
from retone.data.archives import choose_data_files
from retone.data.sources import BadRows, read_items, source_path, source_sha256
from retone.errors import InputError

SHARED = Path(__file__).parents[2] / "../shared/data"


# --- folders, globs, archives, saved datasets, standard input ---


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    for name in ("b.jsonl", "a/z.jsonl.gz", "a/a.csv"):
        row = b"n\n%s\n" % name.encode() if name.endswith("csv") else b'{"n": "%s"}' % name.encode()
        written(folder / name, gzip.compress(row) if name.endswith("gz") else row)
    for name in ("README.md", "LICENSE", ".hidden.jsonl", ".cache/x.jsonl", "dataset_infos.json"):
        written(folder / name, "not data")
    written(folder / "notes.txt", "about the data")
    written(folder / "a/photo.png", "png")
    bad = BadRows()
    found = items(folder, bad)
    assert [item.file for item in found] == ["chats/a/a.csv", "chats/a/z.jsonl.gz", "chats/b.jsonl"]
    assert [item.values["n"] for item in found] == ["a/a.csv", "a/z.jsonl.gz", "b.jsonl"]
    assert bad.notes == ["chats: not read: a/photo.png, notes.txt"]


def test_a_folder_of_text_is_read_as_text(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "README.md"):
        written(tmp_path / name, name)
    assert values(tmp_path) == [{"text": "a.md"}, {"text": "b.txt"}]


def test_links_are_followed_to_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    target = written(tmp_path / "elsewhere.jsonl", '{"n": 1}')
    written(folder / "sub/b.jsonl", '{"n": 2}')
    (folder / "a.jsonl").symlink_to(target)
    (folder / "sub/up").symlink_to(folder, target_is_directory=True)
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    bad = BadRows()
    assert [item.values["n"] for item in items(folder, bad)] == [1, 2]
    assert bad.notes == ["data: not read: gone.jsonl, sub/up"]


def test_a_glob(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "d.csv", "README.md"):
        written(tmp_path / name, "n\nd.csv" if name == "d.csv" else json.dumps({"n": name}))
    assert [row["n"] for row in values(tmp_path / "*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [row["n"] for row in values(tmp_path / "**/*.jsonl")] == [
        "a.jsonl",
        "b.jsonl",
        "sub/c.jsonl",
    ]
    # A folder among the matches is read as a folder, once.
    assert [row["n"] for row in values(tmp_path / "*")] == [
        "a.jsonl",
        "b.jsonl",
        "d.csv",
        "sub/c.jsonl",
    ]
    assert [item.file for item in items(tmp_path / "s*/*.jsonl")] == [
        f"{tmp_path.name}/sub/c.jsonl"
    ]
    exact = written(tmp_path / "odd[1].jsonl", '{"n": "odd"}')
    assert values(exact) == [{"n": "odd"}]
    with pytest.raises(InputError, match="no data file matches"):
        items(tmp_path / "*.parquet")


def test_a_zip_is_read_in_name_order(tmp_path: Path) -> None:
    inner = {"b.csv.gz": gzip.compress(b"n\n2\n"), "a/x.jsonl": b'{"n": "1"}', "README.md": b"x"}
    members = {**inner, "c.png": b"png", "__MACOSX/._b.csv": b"x"}
    path = written(tmp_path / "rows.zip", zip_bytes(members))
    bad = BadRows()
    found = items(path, bad)
    assert [item.values["n"] for item in found] == ["1", "2"]
    assert [item.file for item in found] == ["rows.zip/a/x.jsonl", "rows.zip/b.csv.gz"]
    assert bad.notes == ["rows.zip/a/x.jsonl: not read: c.png"]


def saved_dataset(folder: Path) -> Path:
    """The layout of `DatasetDict.save_to_disk`, of which only what is read is made."""
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
        written(folder / split / "data-00000-of-00001.arrow", arrow_bytes(rows, stream=True))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        written(folder / split / "state.json", json.dumps(state))
        written(folder / split / "dataset_info.json", "{}")
    written(folder / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    return folder


def test_a_saved_datasets_folder(tmp_path: Path) -> None:
    folder = saved_dataset(tmp_path / "saved")
    assert values(folder) == ROWS[:3]
    assert values(folder, split="test") == ROWS[3:]
    assert values(folder / "test") == ROWS[3:]
    with pytest.raises(InputError) as caught:
        items(folder, split="tset")
    assert 'did you mean "test"' in caught.value.problem
    (folder / "train/state.json").write_text("{")
    with pytest.raises(InputError, match="not whole"):
        items(folder)


def test_a_folder_that_the_library_itself_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(ROWS)
    parts = {"train": whole.select(range(3)), "test": whole.select([4])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert values(tmp_path / "saved") == ROWS[:3]
    assert values(tmp_path / "saved", split="test") == ROWS[4:]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pipe(content: bytes) -> None:
        sources._spooled_stdin.cache_clear()
        stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stdin)

    yield pipe
    sources._spooled_stdin.cache_clear()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "file.arrow"])
def test_standard_input(piped: Any, name: str) -> None:
    piped(gzip.compress(CONTENTS[name]))
    assert values("-") == ROWS
    assert values("-") == ROWS, "a second reading gets the same rows"
    assert {item.file for item in items("-")} == {"stdin"}
    assert len(source_sha256(SourceSection(path="-"))) == 64


def test_standard_input_that_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    sources._spooled_stdin.cache_clear()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(InputError, match="nothing is piped") as caught:
        items("-")
    assert "COMMAND | retone" in caught.value.remedy


# --- names ---


def test_bundled_data() -> None:
    found = items("bundled:yoda/train.jsonl")
    assert len(found) > 100
    assert source_path("bundled:yoda/train.jsonl").is_file()
    with pytest.raises(InputError, match=r"did you mean .bundled:yoda/train\.jsonl") as caught:
        items("bundled:yoda/trian.jsonl")
    assert caught.value.code == "no-data-file"


def test_a_missing_path_gives_the_nearest(tmp_path: Path) -> None:
    written(tmp_path / "pairs.csv", TABLE)
    with pytest.raises(InputError) as caught:
        items(tmp_path / "pars.csv")
    assert caught.value.code == "no-data-file"
    assert f'did you mean "{tmp_path / "pairs.csv"}"' in caught.value.found
    with pytest.raises(InputError, match="no such data file"):
        items(tmp_path / "nowhere" / "a.csv")


def test_chosen_names_are_sorted_and_about_files_left_out() -> None:
    names = [
        "b.csv",
        "License.txt",
        "state-names.csv",
        "a.JSONL",
        "x/.git/a.csv",
        "sub/c.zip",
        "d.txt",
        "e.bin",
    ]
    assert choose_data_files(names) == (
        ["a.JSONL", "b.csv", "state-names.csv", "sub/c.zip"],
        ["d.txt", "e.bin"],
    )
    assert choose_data_files(["README.md", "d.txt"]) == (["d.txt"], [])
    assert choose_data_files([]) == ([], [])


def test_the_hash_tells_names_bytes_and_selection(tmp_path: Path) -> None:
    def sha(path: Path, **fields: Any) -> str:
        return source_sha256(SourceSection(path=str(path), **fields))

    one = written(tmp_path / "d/one.jsonl", LINES)
    two = written(tmp_path / "d/two.jsonl", LINES)
    hashes = [sha(one), sha(two), sha(tmp_path / "d"), sha(tmp_path / "d/o*.jsonl")]
    assert len(set(hashes)) == 4
    assert hashes[2] == sha(tmp_path / "d/*.jsonl")
    written(tmp_path / "d/README.md", "about")
    assert sha(tmp_path / "d") == hashes[2]
    os.utime(one, ns=(1, 1))
    assert sha(one) == hashes[0]
    written(two, LINES + b"\n")
    assert sha(tmp_path / "d") != hashes[2]
    saved = saved_dataset(tmp_path / "saved")
    assert sha(saved) != sha(saved, split="test")


# --- memory, and real files ---


@pytest.mark.parametrize(
    ("kind", "count"),
    [("jsonl", 200_000), ("csv.gz", 200_000), ("json", 100_000), ("parquet", 100_000)],
)
def test_rows_stream_in_flat_memory(tmp_path: Path, kind: str, count: int) -> None:
    path = tmp_path / f"rows.{kind}"
    line = b'{"prompt": "a small row", "completion": "and its answer"}'
    if kind == "jsonl":
        path.write_bytes((line + b"\n") * count)
    elif kind == "json":
        path.write_bytes(b"[" + (line + b",") * (count - 1) + line + b"]")
    elif kind == "csv.gz":
        table = b"prompt,completion\n" + b"a small row,and its answer\n" * count
        path.write_bytes(gzip.compress(table, 1))
    else:
        table = pa.table({"prompt": ["a small row"] * count, "completion": ["answer"] * count})
        pq.write_table(table, path)
        del table
    tracemalloc.start()
    read = sum(1 for _ in read_items(SourceSection(path=str(path)), BadRows()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == count
    assert peak < 6_000_000, f"{peak} bytes"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_real_files() -> None:
    counts = {
        "style/yoda_sentences.csv": 612,
        "style/public_kjv_bbe_web_ylt_2000.jsonl": 2000,
        "style/filters_styles_720.jsonl": 720,
        "instruct/alpaca_en_demo.json": 999,
        "instruct/glaive_toolcall_en_demo.json": 300,
        "instruct/seed_tasks.jsonl": 175,
        "qa/NQ-open.dev.jsonl": 3610,
        "qa/ARC-Easy.train.json": 2251,
    }
    for name, count in counts.items():
        assert len(items(SHARED / name)) == count, name
    for path in sorted((SHARED / "golden/formats").iterdir()):
        assert items(path), path.name
    assert len({item.file for item in items(SHARED / "golden/formats")}) >= 15
