"""`retone runs` and `retone new`: what is kept, and a recipe to start from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.config import find_recipe
from retone.errors import InputError
from retone.run_dir import Run, all_runs, find_run, read_json, runs_root, write_whole


@dataclass(frozen=True)
class Runs:
    """The runs that are kept, oldest first."""

    runs: list[Run]
    deleted: list[str]

    def as_json(self) -> dict[str, Any]:
        """The object of `retone runs --json`."""
        return {"runs": [_facts(run) for run in self.runs], "deleted": self.deleted}

    def show(self) -> None:
        """Print a table."""
        for name in self.deleted:
            console.out().print(f"deleted {escape(name)}")
        if not self.runs:
            console.out().print(f"no runs in {escape(str(runs_root()))}; retone run yoda makes one")
            return
        facts = [_facts(run) for run in self.runs]
        rows = [
            [f["name"], f["status"], f["model"], f["created"][:16], f"{f['bytes'] / 1e6:.0f} MB"]
            for f in facts
        ]
        console.out().print(console.table("", ["run", "status", "model", "made", "size"], rows))


def runs(*, delete: list[str] | None = None) -> Runs:
    """List the runs, after deleting those named (all names are checked first)."""
    doomed = [find_run(name) for name in delete or []]
    for run in doomed:
        with run.locked():
            pass  # refuses a run that another process works on
        shutil.rmtree(run.path)
    return Runs(all_runs(), [run.name for run in doomed])


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    path: Path

    def as_json(self) -> dict[str, Any]:
        """The object of `retone new --json`."""
        return {"path": str(self.path)}

    def show(self) -> None:
        """Print the way on."""
        console.out().print(f"wrote {escape(str(self.path))}   next: retone inspect {self.path}")


def new(path: Path, *, source: str) -> Written:
    """Write a starter recipe; never over an existing file."""
    if path.suffix != ".toml":
        raise InputError(
            "a recipe's name ends in .toml", str(path), f"retone new {path}.toml", "not-toml"
        )
    if path.exists():
        raise InputError("the file is there already", str(path), "choose another name", "exists")
    write_whole(path, find_recipe(source).read_text(encoding="utf-8"))
    return Written(path)


def _facts(run: Run) -> dict[str, Any]:
    manifest = read_json(run.manifest)
    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "model": manifest["base"]["name"],
        "created": manifest["created"],
        "bytes": run.bytes,
    }
