"""Where exported files go: Ollama, the hub, a Space, a Docker image. The gate comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.errors import InputError
from retone.models.locate import locate
from retone.models.methods import METHODS
from retone.run_dir import Run, require_new
from retone.workflows.adopt import run_or_adapter
from retone.workflows.export import Exported, export
from retone.workflows.load import Opened, open_run
from retone.workflows.ollama import create, require_modelfile, write_modelfile
from retone.workflows.push import Pushed, push, require_pushable
from retone.workflows.space import write_docker, write_space

NOT_BY_OLLAMA = "not run: Ollama itself, with its form of the template; the checks are llama.cpp's."


@dataclass(frozen=True)
class Delivered:
    """An export that went somewhere.

    Attributes:
        exported: the files and their gate.
        to: the destination.
        path: what was made for it; None where the gate blocked it.
        pushed: what the hub was sent.
        told: how to go on.
    """

    exported: Exported
    to: str
    path: Path | None
    pushed: Pushed | None = None
    told: str = ""

    @property
    def ok(self) -> bool:
        """No check failed."""
        return self.exported.ok

    def as_json(self) -> dict[str, Any]:
        """The object of `retone export --json`."""
        path = None if self.path is None else str(self.path)
        pushed = self.pushed.as_json() if self.pushed else None
        return {**self.exported.as_json(), "to": self.to, "path": path, "pushed": pushed}

    def show(self) -> None:
        """Print the gate, the files, and how to go on."""
        self.exported.show()
        if self.pushed:
            self.pushed.show()
        elif self.path:
            told = f"{self.path}   {self.told}".rstrip()
            console.out().print(escape(told), soft_wrap=True)


def deliver(
    run: str = "latest",
    *,
    to: str,
    form: str | None = None,
    output: Path | None = None,
    repo: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    base: str | None = None,
    licence: str | None = None,
    offline: bool = False,
    **how: Any,
) -> Delivered:
    """Export a run and bring it somewhere; what its gate refuses goes nowhere.

    Args:
        run, base, licence, offline, how: as `export`.
        to: ollama, hub, space or docker.
        form: that the hub is sent; the adapter where there is one, when left out.
        output: the folder to make; of the hub, what is sent stays there.
        repo: ORG/NAME on the hub.
        public: everybody can read it there.
        dry_run: only say what the hub would be sent.

    Raises:
        InputError, MachineError, CheckFailed: as `export`, and as the destination refuses it.
    """
    found = run_or_adapter(run, offline=offline)
    if output:
        require_new(output)
    opened = open_run(found, offline=offline)
    is_whole = METHODS[opened.resolved.recipe.method.kind].saved_as == "model"
    chosen = "gguf" if to == "ollama" else form or ("merged" if is_whole else "adapter")
    # What can be refused early is not refused after minutes.
    other = locate(base, offline=offline) if base else None
    seen: dict[str, Any] = {
        "licence": licence, "public": public, "dry_run": dry_run, "offline": offline, "base": other,
    }  # fmt: skip
    if to == "hub":
        require_pushable(found, _named(found, repo), chosen, **seen)
    elif to == "ollama":
        require_modelfile(opened, found.name.lower())
    how |= {"base": base, "licence": licence, "offline": offline}
    how["output"] = None if to in _FOLDERS else output
    exported = export(str(found.path), to=chosen, **how)
    if not exported.path:
        return Delivered(exported, to, None)
    if to == "hub":
        sent = push(found, exported.path, _named(found, repo), gate=exported.gate.as_json(), **seen)
        return Delivered(exported, to, exported.path, sent)
    if to == "ollama":
        return _to_ollama(opened, exported, exported.path)
    write, told = _FOLDERS[to]
    out = output or found.exports / to
    write(found, exported.path, out, licence=licence, offline=offline)
    return Delivered(exported, to, out, told=told)


def _to_ollama(opened: Opened, exported: Exported, folder: Path) -> Delivered:
    modelfile, name = write_modelfile(next(folder.glob("*.gguf")), opened), opened.run.name.lower()
    noted = replace(exported, notes=(*exported.notes, NOT_BY_OLLAMA))
    told = f"ollama run {name}" if create(modelfile, name) else ""
    return Delivered(noted, "ollama", modelfile, told=told)


def _named(run: Run, repo: str | None) -> str:
    if repo:
        return repo
    raise InputError(
        "the hub needs the name of a repository", "no --repo",
        f"retone export {run.name} --to hub --repo ORG/NAME --dry-run", "no-repo",
    )  # fmt: skip


_Write = Callable[..., None]
_FOLDERS: dict[str, tuple[_Write, str]] = {
    "space": (write_space, "hf upload ORG/NAME . --repo-type space, in that folder"),
    "docker": (write_docker, "its README says how it is built and run"),
}
