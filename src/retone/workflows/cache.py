"""`retone cache`: what is kept so that it need not be made or fetched again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from rich.markup import escape

from retone import console
from retone.errors import InputError, nearest
from retone.models.locate import cache_dir
from retone.run_dir import runs_root


@dataclass(frozen=True)
class Kept:
    """One thing that is kept.

    Attributes:
        name: how it is called here.
        what: what it is for.
        path: where it lies.
        bytes: size on disk.
    """

    name: str
    what: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class Cache:
    """Everything that is kept, and what was deleted."""

    kept: list[Kept]
    deleted: list[str]

    def as_json(self) -> dict[str, Any]:
        """The object of `retone cache --json`."""
        kept = [{**asdict(one), "path": str(one.path)} for one in self.kept]
        return {"kept": kept, "deleted": self.deleted}

    def show(self) -> None:
        """Print a table."""
        for name in self.deleted:
            console.out().print(f"deleted {escape(name)}")
        if not self.kept:
            console.out().print("nothing is kept")
            return
        rows = [[one.name, one.what, f"{one.bytes / 1e6:.0f} MB"] for one in self.kept]
        console.out().print(console.table("", ["kept", "what it is", "size"], rows))


def cache(*, delete: Sequence[str] = ()) -> Cache:
    """List what is kept, after deleting what is named (all names are checked first).

    Raises InputError for a name that is not in the list.
    """
    known = {one.name: one for one in _everything()}
    unknown = [name for name in delete if name not in known]
    if unknown:
        raise InputError(
            f'nothing is kept under the name "{unknown[0]}"',
            f"{', '.join(known) or 'nothing is kept'}{nearest(unknown[0], known)}",
            "retone cache   (lists the names that can be deleted)",
            "unknown-cache",
        )
    for name in delete:
        shutil.rmtree(known[name].path)
    return Cache(list(_everything()), list(delete))


def _everything() -> Iterator[Kept]:
    for kind, what in (("embedded", "unpacked model"), ("gguf", "unpacked GGUF file")):
        for folder in sorted((cache_dir() / kind).glob("*/")):
            yield _kept(f"{kind}/{folder.name}", what, folder)
    replies = cache_dir() / "teacher"
    if replies.is_dir():
        yield _kept("teacher", "answers of teacher models, which were paid for", replies)
    for name, what in ((".answers", "answers of candidates"), (".prepared", "prepared data")):
        folder = runs_root() / name
        if folder.is_dir():
            yield _kept(name.removeprefix("."), f"{what} in {runs_root()}", folder)
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda one: one.repo_id):
        name = f"hub:{repo.repo_id}"
        yield Kept(name, f"{repo.repo_type} from the hub", repo.repo_path, repo.size_on_disk)


def _kept(name: str, what: str, folder: Path) -> Kept:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Kept(name, what, folder, size)
