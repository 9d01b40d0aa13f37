"""From a model's name to a verified local folder. Loads without torch.

    folder on this machine  >  row of tables/models.toml or hub id: hub cache  >  hub
                            >  the embedded model, for the row that has one

Only safetensors, JSON, chat templates and tokenizer files are ever fetched: no pickle, no code.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import platformdirs

from retone.errors import InputError, MachineError, RetoneError, nearest
from retone.models import embedded
from retone.models.embedded import EmbeddedSpec, Progress
from retone.models.folders import folder_problems, missing_parts, refuse_incomplete
from retone.models.gguf_files import unpacked_gguf

_HUB_SECONDS = 5.0  # the first answer; a hub that is slower than this counts as unreachable
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_HUB_ID = re.compile(r"(?!.*(--|\.\.))\b[\w.-]+\b/\b[\w.-]{1,96}\b(?<!\.git)", re.ASCII)
_SKIPPED = ["*/*", "consolidated*"]  # other runtimes' files, and a second copy of the weights
Origin = Literal["folder", "hub", "embedded"]
GGUF = ".gguf"


@dataclass(frozen=True)
class ModelRow:
    """A row of tables/models.toml; its header says what each field means."""

    name: str
    repo: str
    licence: str
    context: int
    gated: bool
    parameters: int
    source: str
    embedded: EmbeddedSpec | None


@dataclass(frozen=True)
class LocatedModel:
    """A complete local model folder, and where it comes from.

    `note` must be shown wherever the model is named: it says what is special about these weights.
    `revision` is the hub's commit, `context` a number of tokens; None stands for unknown.
    """

    name: str
    path: Path
    origin: Origin
    note: str
    repo: str | None
    revision: str | None
    sha256: str
    licence: str | None
    context: int | None


class _HubUnreachable(Exception):
    """No answer from the hub; the text says why."""


def locate(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> LocatedModel:
    """Find a model, fetching it if need be, and check that its folder is complete.

    Args:
        name: a folder, a GGUF file, a row of tables/models.toml, or a hub id `org/name`.
        revision: a branch, tag or commit of the hub; None is the cached or else the main one.
        offline: never use the network; HF_HUB_OFFLINE=1 asks for the same.
        progress: told about bytes while something is fetched.

    Raises:
        InputError: an unknown name or revision, or a folder or repository that is incomplete
            or holds pickle weights only.
        MachineError: the model is not here and cannot be fetched: offline, hub unreachable,
            licence not accepted, disk full.
    """
    folder = _local_folder(name, revision)
    if folder is not None:
        refuse_incomplete(f"the folder {folder}", folder_problems(folder))
        note = (
            f"These are the weights of {Path(name).name}, unpacked." if name.endswith(GGUF) else ""
        )
        return replace(_located(name, folder, "folder"), note=note)
    row = _row(name)
    repo = row.repo if row else _hub_id(name)
    snapshot = _cached_snapshot(repo, revision)
    if snapshot is None:
        no_network = offline or _hub_is_switched_off()
        try:
            snapshot = _fetched_snapshot(repo, revision, row, no_network, progress)
        except _HubUnreachable as reason:
            if row is None or row.embedded is None or revision is not None:
                raise _not_here(repo, revision, str(reason), no_network) from None
            return _unpacked(row, row.embedded, str(reason), no_network, progress)
    return _located(row.name if row else name, snapshot, "hub", repo, row)


def cache_dir() -> Path:
    """Where retone keeps models and hashes: $RETONE_CACHE, else the user's cache directory."""
    chosen = os.environ.get("RETONE_CACHE")
    place = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("retone", False)
    return place.absolute()


@functools.cache
def model_table() -> dict[str, ModelRow]:
    """The rows of tables/models.toml by name."""
    text = (files("retone") / "tables" / "models.toml").read_text(encoding="utf-8")
    return {name: _parsed_row(name, row) for name, row in tomllib.loads(text).items()}


def weights_sha256(folder: Path) -> str:
    """sha256 of the folder's weights: of the file, or of the sorted names and sha256 of several.

    An unchanged file (path, size, time of change) is hashed once per machine.

    Raises:
        InputError: the folder has no safetensors file.
    """
    weights = sorted(folder.glob("*.safetensors"))
    hashes = {file.name: embedded.remembered_sha256(file, cache_dir()) for file in weights}
    if not hashes:
        refuse_incomplete(f"the folder {folder}", ["model.safetensors is missing"])
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _parsed_row(name: str, row: dict[str, Any]) -> ModelRow:
    place = row.pop("embedded", None)
    spec = EmbeddedSpec(name=name, **place) if place else None
    return ModelRow(name=name, embedded=spec, **row)


def _local_folder(name: str, revision: str | None) -> Path | None:
    path = Path(name).expanduser()
    if name and path.is_dir():
        if revision is None:
            return path.resolve()
        found = f"{path} is a folder, which has no revision {revision}"
    elif name.endswith(GGUF) and path.is_file() and revision is None:
        sha256 = embedded.remembered_sha256(path, cache_dir())
        return unpacked_gguf(path, sha256, cache_dir())
    elif name and path.is_file():
        found = f"{path} is a file; its folder is {path.parent}"
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        found = f"{path} does not exist"
    else:
        return None
    raise InputError(
        f'"{name}" is not the folder of a model',
        found,
        f"give a model folder, a GGUF file, a hub id, or one of {', '.join(model_table())}",
        "not-a-model-folder",
    )


def _row(name: str) -> ModelRow | None:
    wanted = name.lower()
    rows = model_table().values()
    return next((row for row in rows if wanted in (row.name, row.repo.lower())), None)


def _hub_id(name: str) -> str:
    if _HUB_ID.fullmatch(name):
        return name
    raise InputError(
        f'there is no model "{name}"{nearest(name.lower(), model_table())}',
        "neither a folder, nor a row of the model table, nor a hub id (ORG/NAME)",
        f"use one of {', '.join(model_table())}, a hub id, or a folder",
        "unknown-model",
    )


def _located(
    name: str, path: Path, origin: Origin, repo: str | None = None, row: ModelRow | None = None
) -> LocatedModel:
    note = row.embedded.note if origin == "embedded" and row and row.embedded else ""
    commit = path.name if origin == "hub" else None
    sha256 = weights_sha256(path)
    licence = row.licence if row else None
    context = row.context if row else _context(path)
    return LocatedModel(name, path, origin, note, repo, commit, sha256, licence, context)


def _context(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings") or config.get("n_positions")
    return length if isinstance(length, int) else None


def _unpacked(
    row: ModelRow, spec: EmbeddedSpec, hub: str, offline: bool, progress: Progress | None
) -> LocatedModel:
    try:
        path = embedded.embedded_model(spec, cache_dir(), offline=offline, progress=progress)
    except MachineError as error:
        found = f"{hub}; {error.found}"
        raise MachineError(error.problem, found, error.remedy, error.code) from error
    return _located(row.name, path, "embedded", row.repo, row)


def _hub_is_switched_off() -> bool:
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in variables)


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            local_files_only=True,
            allow_patterns=_FETCHED,
            ignore_patterns=_SKIPPED,
        )
    except LocalEntryNotFoundError:
        return None
    return None if folder_problems(Path(folder)) else Path(folder)


def _fetched_snapshot(
    repo: str, revision: str | None, row: ModelRow | None, offline: bool, progress: Progress | None
) -> Path:
    """Download from the hub, with every refusal of the hub put into our words."""
    if offline:
        raise _HubUnreachable("the network is switched off, and the hub's cache lacks the model")
    from huggingface_hub import errors

    # httpx or httpx2, by version; what it raises for a failed connection is not a hub error.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        folder = _download(repo, revision, progress)
    except errors.RevisionNotFoundError:
        raise InputError(
            f"the model {repo} has no revision {revision}",
            "the hub knows no such branch, tag or commit",
            "leave the revision out, or take one from the model's page",
            "unknown-revision",
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refusal(error, error.response.status_code, repo, row) from None
    except (HTTPError, ValueError, OSError) as error:  # ValueError: a login page instead of a hub
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise _HubUnreachable(f"hub: {reason}") from None
        raise MachineError(
            f"the model {repo} could not be written to the hub's cache",
            reason,
            "make room, or set HF_HOME to a folder that can be written",
            "cache-unwritable",
        ) from error
    refuse_incomplete(f"the repository {repo}", folder_problems(folder))
    return folder


def _download(repo: str, revision: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import filter_repo_objects, tqdm  # type: ignore[attr-defined]

    class NoBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks for a list of agents to report
    # The one call with a deadline: it tells within seconds whether there is a hub at all.
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_HUB_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = set(filter_repo_objects(sizes, allow_patterns=_FETCHED, ignore_patterns=_SKIPPED))
    problems = missing_parts({name for name in sizes if "/" not in name})
    refuse_incomplete(f"the repository {repo}", problems)
    place = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    total = sum(sizes[name] for name in wanted)
    with embedded.bytes_shown(progress, f"downloading {repo}", place, total):
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=_FETCHED,
            ignore_patterns=_SKIPPED,
            tqdm_class=NoBar,
        )
    return Path(folder)


def _refusal(error: Exception, status: int, repo: str, row: ModelRow | None) -> Exception:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    gated = isinstance(error, GatedRepoError) or (row is not None and row.gated)
    if status in (401, 403, 404) and isinstance(error, RepositoryNotFoundError) and not gated:
        known = [row.repo for row in model_table().values()]
        return InputError(
            f"the hub has no model {repo}{nearest(repo, known)}",
            f"answer {status}: it does not exist, or it is private",
            "check the spelling on the model's page; for a private model: hf auth login",
            "unknown-model",
        )
    if status in (401, 403):
        return MachineError(
            f"the hub refuses access to {repo}",
            f"answer {status}: the licence was not accepted, or this machine is not logged in",
            f"accept the licence on the model's page (huggingface.co/{repo}), then: hf auth login",
            "gated-model",
        )
    return _HubUnreachable(f"hub: answer {status}")


def _not_here(repo: str, revision: str | None, found: str, offline: bool) -> RetoneError:
    wanted = f"{repo} at revision {revision}" if revision else repo
    return MachineError(
        f"the model {wanted} is not on this machine",
        found,
        "with a network, once: retone doctor --fetch; or give a model folder with --model"
        if offline
        else "check the network (or HF_ENDPOINT) and run the same again; "
        "or give a model folder with --model",
        "model-offline" if offline else "hub-unreachable",
    )
