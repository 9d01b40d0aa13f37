"""Encoded rows on disk: flat arrays that are mapped into memory, so that any number of them fits.

    store.json     how many numbers each file holds, and the names of the sources
    ids.u4         token ids of all rows, one after another
    ends.u8        where each row's ids end
    run_sizes.u4, run_weights.f8, run_ends.u8
                   loss weights as runs: so many tokens of this weight, and where a row's runs end
    sources.u4, numbers.u4, samples.u4, lasts.u4
                   each row's source and row number there, the number of its sample, and the id of
                   the last token that is trained (reading it from the ids would map all of them)

Loss weights change a few times in a row, so runs take a hundredth of the space of the ids, and are
exact. Numbers are little-endian whatever machine writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from retone.batch import EncodedRow
from retone.errors import InputError
from retone.run_dir import whole_folder, write_json

_FILES = ("ids.u4", "ends.u8", "run_sizes.u4", "run_weights.f8", "run_ends.u8",
          "sources.u4", "numbers.u4", "samples.u4", "lasts.u4")  # fmt: skip
WAITING = 4096  # rows that are written together


class EncodedStore(Sequence[EncodedRow]):
    """The rows in a folder made by `writing`, or some of them in another order (see `take`).

    Raises:
        InputError: the folder is not whole.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64] | None = None) -> None:
        self._folder = folder
        try:
            facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
            self._arrays = {name: _mapped(folder / name, facts["sizes"][name]) for name in _FILES}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                "the encoded rows are damaged",
                f"{folder}: {error}",
                "retone run RECIPE --fresh   (starts a new run)",
                "damaged-store",
            ) from error
        self._sources: list[str] = facts["sources"]
        self.rows = np.arange(len(self._arrays["ends.u8"])) if rows is None else rows

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, found without reading the rows."""
        ends = self._arrays["ends.u8"].astype(np.int64)
        return np.asarray(np.diff(ends, prepend=0)[self.rows])

    @property
    def trained(self) -> NDArray[np.int64]:
        """Tokens of each row that enter the loss."""
        sizes = np.where(self._arrays["run_weights.f8"], self._arrays["run_sizes.u4"], 0)
        before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return np.asarray(np.diff(before[self._arrays["run_ends.u8"]], prepend=0)[self.rows])

    @property
    def longest_answer(self) -> int:
        """Most tokens that enter the loss one after another, in all rows of the folder."""
        enters = np.asarray(self._arrays["run_weights.f8"]) != 0
        goes_on = np.concatenate([[False], enters[:-1]])
        goes_on[self._arrays["run_ends.u8"][:-1]] = False  # another row begins
        answer = np.cumsum(enters & ~goes_on)[enters] - 1
        sizes = np.bincount(answer, self._arrays["run_sizes.u4"][enters])
        return int(sizes.max(initial=0))

    @property
    def last_trained(self) -> NDArray[np.int64]:
        """Id of the last token of each row that enters the loss."""
        return np.asarray(self._arrays["lasts.u4"][self.rows], dtype=np.int64)

    @property
    def samples(self) -> NDArray[np.int64]:
        """The number that each row's sample was written with."""
        return np.asarray(self._arrays["samples.u4"][self.rows], dtype=np.int64)

    def take(self, rows: NDArray[Any]) -> EncodedStore:
        """Some of these rows, in this order; a row may be taken more than once."""
        return EncodedStore(self._folder, self.rows[rows])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self._row(row) for row in self.rows[index].tolist()]
        return self._row(int(self.rows[index]))

    def _row(self, row: int) -> EncodedRow:
        of = self._arrays
        ids = of["ids.u4"][_span(of["ends.u8"], row)]
        runs = _span(of["run_ends.u8"], row)
        weights = np.repeat(of["run_weights.f8"][runs], of["run_sizes.u4"][runs])
        source = self._sources[of["sources.u4"][row]]
        return EncodedRow(
            tuple(ids.tolist()), tuple(weights.tolist()), source, int(of["numbers.u4"][row])
        )


class StoreWriter:
    """Takes rows for an `EncodedStore`; made by `writing`."""

    def __init__(self, files: Mapping[str, IO[bytes]]) -> None:
        self._files = files
        self._sources: dict[str, int] = {}
        self._waiting: dict[str, list[Any]] = {name: [] for name in files}
        self._tokens = self._runs = 0
        self.sizes = dict.fromkeys(files, 0)

    @property
    def sources(self) -> list[str]:
        """Names of the sources, by their numbers."""
        return list(self._sources)

    def append(self, row: EncodedRow, sample: int = 0) -> None:
        """Add a row; `sample` is a number of the caller's that stays with it."""
        runs = [(weight, len(list(same))) for weight, same in groupby(row.loss_weights)]
        self._tokens += len(row.input_ids)
        self._runs += len(runs)
        waiting = self._waiting
        waiting["ids.u4"].extend(row.input_ids)
        waiting["ends.u8"].append(self._tokens)
        waiting["run_sizes.u4"].extend(size for _, size in runs)
        waiting["run_weights.f8"].extend(weight for weight, _ in runs)
        waiting["run_ends.u8"].append(self._runs)
        waiting["sources.u4"].append(self._sources.setdefault(row.source, len(self._sources)))
        waiting["numbers.u4"].append(row.row)
        waiting["samples.u4"].append(sample)
        weighted = zip(reversed(row.input_ids), reversed(row.loss_weights), strict=True)
        waiting["lasts.u4"].append(next((token for token, weight in weighted if weight), 0))
        if len(waiting["ends.u8"]) >= WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        for name, values in self._waiting.items():
            self._files[name].write(np.array(values, dtype=_kind(name)).tobytes())
            self.sizes[name] += len(values)
            values.clear()


@contextmanager
def writing(folder: Path) -> Iterator[StoreWriter]:
    """A writer whose store stands in `folder` when the block ends well, and not at all else."""
    with whole_folder(folder) as staging:
        with ExitStack() as stack:
            files = {name: stack.enter_context((staging / name).open("wb")) for name in _FILES}
            writer = StoreWriter(files)
            yield writer
            writer.flush()
        write_json(staging / "store.json", {"sizes": writer.sizes, "sources": writer.sources})


def _kind(name: str) -> str:
    """Little-endian numpy type of a file, named by its ending."""
    return "<" + name.rpartition(".")[2]


def _mapped(path: Path, size: int) -> NDArray[Any]:
    """An array of `size` numbers; ValueError where the file has another size."""
    kind = np.dtype(_kind(path.name))
    if path.stat().st_size != size * kind.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not those of {size} values")
    return np.memmap(path, kind, "r") if size else np.empty(0, kind)


def _span(ends: NDArray[Any], row: int) -> slice:
    return slice(int(ends[row - 1]) if row else 0, int(ends[row]))
