"""`retone runs` and `retone new`: what is kept, and a recipe to start from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.errors import InputError, nearest
from retone.recipe_file import bundled_recipes, describe_fields
from retone.run_dir import Run, all_runs, check_name, read_json, runs_root, write_whole
from retone.teacher.persona import bundled_personas

PERSONA = "persona:"  # before the name of a bundled persona


@dataclass(frozen=True)
class Runs:
    """The runs that are kept, oldest first."""

    runs: list[Run]
    deleted: list[str]
    renamed: str = ""

    def as_json(self) -> dict[str, Any]:
        """The object of `retone runs --json`."""
        facts = [_facts(run) for run in self.runs]
        return {"runs": facts, "deleted": self.deleted, "renamed": self.renamed}

    def show(self) -> None:
        """Print a table."""
        for name in self.deleted:
            console.out().print(f"deleted {escape(name)}")
        if self.renamed:
            console.out().print(f"it is called {escape(self.renamed)} now")
        if not self.runs:
            console.out().print(f"no runs in {escape(str(runs_root()))}; retone run yoda makes one")
            return
        facts = [_facts(run) for run in self.runs]
        rows = [
            [f["name"], f["status"], f["model"], f["created"][:16], f"{f['bytes'] / 1e6:.0f} MB"]
            for f in facts
        ]
        console.out().print(console.table("", ["run", "status", "model", "made", "size"], rows))


def runs(*, delete: list[str] | None = None, rename: tuple[str, str] | None = None) -> Runs:
    """List the runs, after deleting those named (all names are checked first), or renaming one."""
    found = {run.name: run for run in all_runs()}
    doomed = [_known(name, found) for name in delete or []]
    for run in doomed:
        with run.locked():
            pass  # refuses a run that another process works on
        shutil.rmtree(run.path)
    if rename:
        _rename(_known(rename[0], found), rename[1])
    return Runs(all_runs(), [run.name for run in doomed], rename[1] if rename else "")


def _known(name: str, found: dict[str, Run]) -> Run:
    if name not in found:
        raise InputError(
            f'there is no run "{name}"',
            f"runs in {runs_root()}: {', '.join(found) or 'none'}{nearest(name, found)}",
            "retone runs   (lists them)",
            "unknown-run",
        )
    return found[name]


def _rename(run: Run, name: str) -> None:
    check_name(name)
    target = run.path.with_name(name)
    if target.exists():
        raise InputError(
            "there is a run of that name already", str(target), "choose another name", "exists"
        )
    with run.locked():
        run.path.rename(target)


@dataclass(frozen=True)
class Written:
    """A file that was written, and the verb that reads it."""

    path: Path
    verb: str = "retone inspect"

    def as_json(self) -> dict[str, Any]:
        """The object of `retone new --json`."""
        return {"path": str(self.path)}

    def show(self) -> None:
        """Print the way on."""
        console.out().print(f"wrote {escape(str(self.path))}   next: {self.verb} {self.path}")


def new(path: Path, *, source: str) -> Written:
    """Write a starter from a bundled recipe, or from a bundled persona (`persona:NAME`).

    Never over an existing file.
    """
    if path.suffix != ".toml":
        raise InputError(
            "a recipe's name ends in .toml", str(path), f"retone new {path}.toml", "not-toml"
        )
    if path.exists():
        raise InputError("the file is there already", str(path), "choose another name", "exists")
    personas = {f"{PERSONA}{name}": file for name, file in bundled_personas().items()}
    if source in personas:
        write_whole(path, personas[source].read_text(encoding="utf-8"))
        return Written(path, "retone synthesize")
    bundled = bundled_recipes()
    if source not in bundled:
        raise InputError(
            f'there is no bundled recipe "{source}"',
            f"bundled: {', '.join([*bundled, *personas])}{nearest(source, [*bundled, *personas])}",
            f"retone new {path} --from {next(iter(bundled))}",
            "unknown-recipe",
        )
    write_whole(path, starter(bundled[source].read_text(encoding="utf-8")))
    return Written(path)


def starter(text: str) -> str:
    """A bundled recipe without its header, and every other field in comments."""
    body = text[text.index("model.name") :].rstrip()
    lines = [
        "# What to change first: data.train, data.columns and data.test (your files), data.system.",
        "# Paths are relative to this file. Look before training: retone inspect THIS_FILE",
        body,
        "",
        "# Every field, its default and what it means; put those you need into their section:",
    ]
    for field, _, default, sentence in describe_fields():
        shown = "left out" if default == "None" else default
        lines.append(f"# {field} = {shown}   {' '.join(sentence.split())}")
    return "\n".join(lines) + "\n"


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
