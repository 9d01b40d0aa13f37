"""A run: a directory that remembers everything. Loads without torch.

    runs/<name>/ resolved.json manifest.json template_lock.json metrics.jsonl training.json
                 data/{train,validation,test}.jsonl data/encoded/ data/ledger.json
                 checkpoints/step_000200/ adapter/ (or model/)
                 evaluation/{scores.json,answers.jsonl} exports/

Files appear whole: written to a temporary name, flushed, renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import filelock

from retone.errors import InputError, MachineError, nearest


def runs_root() -> Path:
    """Where runs are kept: $RETONE_RUNS, else ./runs."""
    return Path(os.environ.get("RETONE_RUNS", "runs"))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the name `path` when the block ends well, else vanishes.

    A full disk, or one that cannot be written, comes out as MachineError that names the folder; a
    folder of ours that stood there before is replaced only once the new one is whole.
    """
    staging, old = _beside(path), _beside(path)
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            old.rmdir()  # its name is what was wanted
            os.replace(path, old)
        os.replace(staging, path)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A new empty folder in the same place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _disk_error(error, path) from error


def require_new(folder: Path) -> None:
    """InputError where something stands in the place of a folder that is to be made."""
    if folder.exists():
        raise InputError("the folder is there already", str(folder), "-o ANOTHER_FOLDER", "exists")


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file, whole or in pieces, so that it is either the old one or all of the new."""
    with whole_file(path) as file:
        file.writelines([text] if isinstance(text, str) else text)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes the name `path` when the block ends well, else vanishes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _disk_error(error, path) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _disk_error(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return MachineError(
            "it cannot be written there", f"{path}: {error.strerror}",
            "name a folder that can be written", "not-writable",
        )  # fmt: skip
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = shutil.disk_usage(path.parent if path.parent.exists() else Path.cwd()).free
    return MachineError(
        "the disk is full",
        f"{free / 1e6:.0f} MB free while writing {path}; the last whole checkpoint is kept",
        "make room (retone runs shows sizes), then the same command again resumes",
        "disk-full",
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, readable by people."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; InputError when the file of a run was damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            "a file of the run is damaged",
            f"{path}: {error}",
            "retone run RECIPE --fresh   (starts a new run)",
            "damaged-run",
        ) from error


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON object per line."""
    # Not `splitlines`, which also cuts at the line separators that texts may contain.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; copied where the disk cannot do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """sha256 over the canonical JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A run directory; every path of it is named here and nowhere else."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def resolved(self) -> Path:
        """The complete recipe with reasons."""
        return self.path / "resolved.json"

    @property
    def manifest(self) -> Path:
        """Versions, hardware, seeds, hashes."""
        return self.path / "manifest.json"

    @property
    def template_lock(self) -> Path:
        """Rendered ids of fixed prompts."""
        return self.path / "template_lock.json"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        """The prepared data: rows, encoded rows, ledger."""
        return self.path / "data"

    @property
    def ledger(self) -> Path:
        """Rows and tokens read, trained, masked, cut, dropped."""
        return self.data / "ledger.json"

    @property
    def samples(self) -> Path:
        """Answers while it was trained, one JSON line each; where `train.sample_answers` asks."""
        return self.path / "samples.jsonl"

    @property
    def votes(self) -> Path:
        """Blind votes of the web app, an SQLite file."""
        return self.path / "votes.sqlite3"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The tuned adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The tuned model, where weights of the base itself were trained."""
        return self.path / "model"

    @property
    def tuned(self) -> Path:
        """Whichever of the two there is."""
        return self.model if self.model.is_dir() else self.adapter

    @property
    def parent(self) -> Path:
        """The adapter that training goes on from, where there is one."""
        return self.path / "parent"

    @property
    def exports(self) -> Path:
        """What was exported, and what the gate said of each: NAME/ and NAME.json."""
        return self.path / "exports"

    @property
    def training(self) -> Path:
        """How training ended: steps, best loss, seconds, memory, parameters."""
        return self.path / "training.json"

    def evaluation(self, test: str = "") -> Path:
        """Folder of the evaluation on the run's own test rows, or on another file's."""
        folder = self.path / "evaluation"
        return folder / test if test else folder

    @property
    def scores(self) -> Path:
        """Scores of every candidate; there only when the run is finished."""
        return self.evaluation() / "scores.json"

    @property
    def answers(self) -> Path:
        """Every candidate's answers to every test row."""
        return self.evaluation() / "answers.jsonl"

    @property
    def report(self) -> Path:
        """The report on the run's own test rows."""
        return self.path / "report.html"

    def split(self, name: str) -> Path:
        """The prepared rows of `train`, `validation` or `test`."""
        return self.data / f"{name}.jsonl"

    @property
    def status(self) -> str:
        """finished, trained, interrupted or new."""
        if self.scores.is_file():
            return "finished"
        if self.training.is_file():
            return "trained"
        return "interrupted" if self.checkpoints.is_dir() else "new"

    @property
    def told(self) -> str:
        """The status as a sentence on what happens next."""
        return {
            "finished": "finished before; shown again (--fresh starts a new run)",
            "trained": "trained before; evaluation follows",
            "interrupted": "goes on where it was stopped",
            "new": "a new run",
        }[self.status]

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; InputError when another process does."""
        lock = filelock.FileLock(self.path / ".lock", blocking=False)
        try:
            with lock:
                yield
        except filelock.Timeout:
            raise InputError(
                f'the run "{self.name}" is being worked on by another process',
                str(self.path),
                "wait for it, or start another with --fresh",
                "run-busy",
            ) from None


def is_run(path: Path) -> bool:
    """Whether a folder is a run of ours; any other folder with a manifest.json is not touched."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"fingerprint", "created", "retone"} <= manifest.keys()


def all_runs() -> list[Run]:
    """Every run, oldest first."""
    folders = [path.parent for path in runs_root().glob("*/manifest.json") if is_run(path.parent)]
    dated = sorted((read_json(path / "manifest.json")["created"], path) for path in folders)
    return [Run(path) for _, path in dated]


def find_run(name: str) -> Run:
    """A run by directory, by name, or `latest` (the newest finished or trained one)."""
    if is_run(Path(name)):
        return Run(Path(name))
    runs = all_runs()
    if name == "latest":
        done = [run for run in runs if run.status in ("finished", "trained")]
        if done:
            return done[-1]
    for run in runs:
        if run.name == name:
            return run
    names = [run.name for run in runs]
    raise InputError(
        "there is no finished run yet" if name == "latest" else f'there is no run "{name}"',
        f"{len(names)} runs in {runs_root()}{nearest(name, names)}",
        "retone run yoda   (makes one), or retone runs   (lists them)",
        "unknown-run",
    )


def newest_run(key: str) -> Run | None:
    """The newest run of the same recipe and data (`key` is their fingerprint)."""
    same = [run for run in all_runs() if read_json(run.manifest)["fingerprint"] == key]
    return same[-1] if same else None


def check_name(name: str) -> None:
    """InputError for a name that is not one folder's."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(
            "the name of a run is one plain word",
            repr(name),
            "--name my-run   (letters, digits, dot, dash, underscore)",
            "wrong-name",
        )


def create_run(name: str, manifest: dict[str, Any], files: dict[str, Any]) -> Run:
    """Make a new run directory that appears whole: its manifest and the `files` given.

    A file is given as the JSON that it holds, or as the path of a file that gets a second name.

    Takes `name`, or `name-2`, `name-3` ... where that is taken. Raises InputError for a name that
    is not one folder's.
    """
    check_name(name)
    root = runs_root()
    root.mkdir(parents=True, exist_ok=True)
    number, path = 1, root / name
    while path.exists():
        number += 1
        path = root / f"{name}-{number}"
    with whole_folder(path) as staging:
        for file, value in files.items():
            if isinstance(value, Path):
                link_or_copy(value, staging / file)
            else:
                write_json(staging / file, value)
        write_json(staging / "manifest.json", manifest)
    return Run(path)
