"""Encoded rows on disk: what is read is what was written, and a damaged store says so."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from retone.batch import EncodedRow
from retone.data.batching import collate
from retone.data.store import WAITING, EncodedStore, writing
from retone.errors import InputError

WEIGHTS = st.sampled_from([0.0, 1.0, 0.1, 0.5, -0.25, 1e-9])
ROW = st.lists(st.tuples(st.integers(0, 2**32 - 1), WEIGHTS), max_size=12)


def stored(folder: Path, rows: list[EncodedRow]) -> EncodedStore:
    with writing(folder) as writer:
        for number, row in enumerate(rows):
            writer.append(row, number)
    return EncodedStore(folder)


@given(st.lists(ROW, max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were(tmp_path: Path, drawn: list[list[tuple[int, float]]]) -> None:
    rows = [
        EncodedRow(tuple(i for i, _ in row), tuple(w for _, w in row), f"file {at % 3}", at)
        for at, row in enumerate(drawn)
    ]
    store = stored(tmp_path / "store", rows)
    assert list(store) == rows
    assert store[:] == rows
    assert store.lengths.tolist() == [len(row.input_ids) for row in rows]
    assert store.trained.tolist() == [row.trained for row in rows]
    assert store.samples.tolist() == list(range(len(rows)))


def test_many_rows_are_streamed_and_taken_in_any_order(tmp_path: Path) -> None:
    rows = tiny.rows(WAITING + 50)
    store = stored(tmp_path / "store", rows)
    assert len(store) == len(rows)
    assert store[WAITING + 3] == rows[WAITING + 3]
    assert store[-1] == rows[-1]
    some = store.take(np.array([7, 7, 2, 4099]))
    assert list(some) == [rows[7], rows[7], rows[2], rows[4099]]
    assert some.take(np.array([2]))[0] == rows[2]
    assert some.lengths.tolist() == [len(rows[at].input_ids) for at in (7, 7, 2, 4099)]
    with pytest.raises(IndexError):
        some[4]
    batch = collate(some[:2], pad_id=0)
    assert batch.input_ids[0].tolist() == list(rows[7].input_ids)


def test_longest_answer_joins_weights_but_not_rows(tmp_path: Path) -> None:
    rows = [
        EncodedRow((1, 2, 3, 4), (0.0, 0.0, 1.0, 1.0)),
        EncodedRow((1, 2, 3, 4), (1.0, 0.5, 0.5, 0.0)),
        EncodedRow((1, 2, 3, 4), (0.0, 1.0, 0.0, 1.0)),
    ]
    assert stored(tmp_path / "store", rows).longest_answer == 3
    assert stored(tmp_path / "none", []).longest_answer == 0


def test_a_store_that_fails_halfway_is_not_there(tmp_path: Path) -> None:
    def fail() -> None:
        with writing(tmp_path / "store") as writer:
            writer.append(EncodedRow((1,), (0.0,)))
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ids.u4", "run_ends.u8", "store.json"])
def test_a_damaged_store_is_refused(tmp_path: Path, name: str) -> None:
    stored(tmp_path / "store", tiny.rows(5))
    file = tmp_path / "store" / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError) as caught:
        EncodedStore(tmp_path / "store")
    assert caught.value.code == "damaged-store"
    file.unlink()
    with pytest.raises(InputError, match=name):
        EncodedStore(tmp_path / "store")


def test_reading_a_few_rows_of_a_large_store_takes_little_memory(tmp_path: Path) -> None:
    """The arrays are mapped: 200 MB of ids are not read for ten rows and all lengths."""
    code = f"""
        import resource
        from pathlib import Path
        from retone.batch import EncodedRow
        from retone.data.store import EncodedStore, writing
        row = EncodedRow(tuple(range(1000)), (0.0,) * 500 + (1.0,) * 500)
        folder = Path({str(tmp_path / "store")!r})
        with writing(folder) as writer:
            for number in range(50_000):
                writer.append(row, number)
        written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store = EncodedStore(folder)
        assert store.lengths.sum() == 50_000_000
        assert all(store[at * 5000] == row for at in range(10))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - written)
        assert (folder / "ids.u4").stat().st_size == 200_000_000
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20_000  # kB
