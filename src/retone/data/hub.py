"""Datasets of the Hugging Face Hub: the files of one split, pinned to a commit, from its cache.

The files are fetched whole and read like any others, so that a second run needs no network and
reads the same bytes. Which files make a split follows the conventions of the library `datasets`:
the table `configs` of the README's header, else the names of files and folders
(huggingface.co/docs/hub/datasets-data-files-configuration). Loads without huggingface_hub.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retone.config import HUB, SourceSection
from retone.data.archives import DataFile, choose_data_files
from retone.errors import InputError, MachineError, RetoneError, nearest

_HUB_SECONDS = 5.0  # the first answer; a hub that is slower than this counts as unreachable
_SHARD = re.compile(r"[-_.]?\d{1,6}(-of-\d{1,6})?(-[0-9a-f]{16})?$")
# Words in a file's path that tell its split, as `datasets` reads them.
_SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


def dataset_files(source: SourceSection) -> list[DataFile]:
    """The files of a split of `hub:ORG/NAME`, in name order, fetched where the cache lacks them.

    Raises:
        InputError: no such dataset, revision, configuration or split, or no files that are read.
        MachineError: the hub cannot be reached, refuses access, or the disk is full.
    """
    repo = source.path.removeprefix(HUB)
    return list(_dataset_files(repo, source.revision, source.name, source.split))


@functools.cache
def _dataset_files(
    repo: str, revision: str | None, config: str | None, split: str
) -> tuple[DataFile, ...]:
    """The same once per process, so that one run reads one commit."""
    from huggingface_hub import constants, get_cached_repo_tree
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks for a list of agents to report
    disable_progress_bars()
    online = _answers(repo, revision)
    readme = _fetched(repo, revision, ["README.md", ".gitattributes"], online) / "README.md"
    commit = readme.parent.name
    tree = get_cached_repo_tree(repo, repo_type="dataset", revision=commit)
    names = [file.path for file in tree]
    wanted = split_files(repo, names, _configs(repo, readme), config, split)
    folder = _fetched(repo, commit, [glob.escape(name) for name in wanted], online)
    return tuple(DataFile(folder / name, f"{repo}/{name}", commit) for name in wanted)


def split_files(
    repo: str, names: Sequence[str], configs: Sequence[Any], config: str | None, split: str
) -> list[str]:
    """The files of a split among the names of a repository's files.

    Args:
        repo: for messages.
        names: of all files, with folders.
        configs: the table of the README's header: config_name, data_files, data_dir, default.
        config: the one that is wanted; None: the default one.
        split: train, validation, test, or a name of the repository's own.

    Raises:
        InputError: there is no such configuration or split (those there are are named), or no
            file of a kind that is read.
    """
    tables = {str(row["config_name"]): row for row in configs if _is_config(row)}
    if tables:
        row = _chosen_config(repo, tables, config)
        if row.get("data_files"):
            return _listed_files(repo, names, row["data_files"], split)
        folder = str(row.get("data_dir") or "").strip("./")
    else:
        folder = config or ""
    inside = [name for name in names if not folder or f"/{folder}/" in f"/{name}"]
    chosen, _ = choose_data_files(inside)
    if not chosen:
        raise _no_files(repo, names, folder)
    return _files_by_name(repo, chosen, split)


def _configs(repo: str, readme: Path) -> list[Any]:
    """The table `configs` of the README's YAML header; empty where there is none."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        header = metadata_load(readme) if readme.is_file() else None
    except (YAMLError, ValueError) as error:
        raise InputError(
            f"the header of the README of the dataset {repo} is no YAML",
            f"{readme}: {str(error).partition(chr(10))[0]}",
            "give a file of it: download it from the dataset's page",
            "broken-dataset",
        ) from error
    table = (header or {}).get("configs")
    return table if isinstance(table, list) else []


def _is_config(row: Any) -> bool:
    return isinstance(row, dict) and bool(row.get("config_name"))


def _chosen_config(repo: str, tables: dict[str, Any], config: str | None) -> dict[str, Any]:
    default = next((name for name, row in tables.items() if row.get("default")), "default")
    name = config or (default if default in tables else next(iter(tables)))
    if name in tables and (config or len(tables) == 1 or default in tables):
        return dict(tables[name])
    raise InputError(
        f"the dataset {repo} has no configuration {config}{nearest(config, tables)}"
        if config
        else f"the dataset {repo} has several configurations",
        ", ".join(tables),
        f'set name = "{next(iter(tables))}" for this source',
        "unknown-config",
    )


def _listed_files(repo: str, names: Sequence[str], data_files: Any, split: str) -> list[str]:
    """The files that the table names: a pattern, a list of them, or one entry for each split."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        key = str(entry.get("split", "train")) if isinstance(entry, dict) else "train"
        given = entry.get("path", []) if isinstance(entry, dict) else entry
        splits.setdefault(key, []).extend([given] if isinstance(given, str) else given)
    if split not in splits:
        raise _no_split(repo, split, list(splits))
    found = {
        name for pattern in splits[split] for name in names if fnmatch.fnmatchcase(name, pattern)
    }
    if not found:
        raise _no_files(repo, names, ", ".join(splits[split]))
    return sorted(found)


def _files_by_name(repo: str, chosen: list[str], split: str) -> list[str]:
    """The files whose own or whose folder's name is the split, or has a word for it."""
    exact = [name for name in chosen if split in _plain_parts(name)]
    if exact:
        return exact
    told = {name: _told_split(name) for name in chosen}
    found = [name for name in chosen if told[name] == split]
    if not found and split == "train":
        found = [name for name in chosen if told[name] is None]
    if not found:
        raise _no_split(repo, split, sorted({told[name] or "train" for name in chosen}))
    return found


def _plain_parts(name: str) -> set[str]:
    """Folders and the file's name without endings and shard numbers."""
    *folders, last = name.split("/")
    return {*folders, _SHARD.sub("", last.partition(".")[0])}


def _told_split(name: str) -> str | None:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in _SPLIT_WORDS.items() if known & words), None)


def _no_split(repo: str, split: str, splits: list[str]) -> InputError:
    return InputError(
        f"the dataset {repo} has no split {split}{nearest(split, splits)}",
        ", ".join(splits),
        f'set split = "{splits[0]}" for this source',
        "unknown-split",
    )


def _no_files(repo: str, names: Sequence[str], wanted: str) -> InputError:
    script = any(name == f"{repo.rpartition('/')[2]}.py" for name in names)
    return InputError(
        f"the dataset {repo} has no files that are read" + (f" in {wanted}" if wanted else ""),
        "it is a script, which is not run" if script else ", ".join(sorted(names)[:5]) or "empty",
        'set revision = "refs/convert/parquet" for this source (the hub\'s own conversion)',
        "no-data-in-dataset",
    )


def _answers(repo: str, revision: str | None) -> bool:
    """Whether there is a hub that answers within seconds; its refusals become our errors."""
    from huggingface_hub import HfApi, errors

    # httpx or httpx2, by version; what it raises for a failed connection is not a hub error.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        HfApi().dataset_info(repo, revision=revision, timeout=_HUB_SECONDS)
    except errors.HFValidationError as error:
        raise InputError(
            f"{HUB}{repo} is no name of a dataset",
            str(error).partition("\n")[0],
            f"{HUB}ORG/NAME",
            "unknown-dataset",
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"the dataset {repo} has no revision {revision}",
            "the hub knows no such branch, tag or commit",
            "leave the revision out, or take one from the dataset's page",
            "unknown-revision",
        ) from None
    except errors.HfHubHTTPError as error:
        refusal = _refusal(error, error.response.status_code, repo)
        if refusal is None:
            return False
        raise refusal from None
    except (HTTPError, errors.OfflineModeIsEnabled, ValueError, OSError):
        return False
    return True


def _refusal(error: Exception, status: int, repo: str) -> RetoneError | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return InputError(
            f"the hub has no dataset {repo}",
            f"answer {status}: it does not exist, or it is private",
            "check the spelling on the dataset's page; for a private dataset: hf auth login",
            "unknown-dataset",
        )
    if status in (401, 403):
        return MachineError(
            f"the hub refuses access to the dataset {repo}",
            f"answer {status}: its terms were not accepted, or this machine is not logged in",
            f"accept them on the dataset's page (huggingface.co/datasets/{repo}), then: "
            "hf auth login",
            "gated-dataset",
        )
    return None


def _fetched(repo: str, revision: str | None, patterns: list[str], online: bool) -> Path:
    """The snapshot folder in the hub's cache, with all files that match."""
    from huggingface_hub import errors, is_offline_mode, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        return Path(
            snapshot_download(
                repo,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                local_files_only=not online,
            )
        )
    except errors.LocalEntryNotFoundError:
        found = "the network is switched off" if is_offline_mode() else "the hub does not answer"
        raise MachineError(
            f"the dataset {repo} is not on this machine, or not all of it",
            f"{found}, and the hub's cache lacks files",
            "run the same once with a network (HF_HUB_OFFLINE unset), or give a file",
            "dataset-offline",
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise _refusal(error, status, repo) or _not_fetched(repo, f"answer {status}") from None
    except (HTTPError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise MachineError(
                f"the dataset {repo} could not be written to the hub's cache",
                reason,
                "make room, or set HF_HOME to a folder that can be written",
                "cache-unwritable",
            ) from error
        raise _not_fetched(repo, reason) from None


def _not_fetched(repo: str, found: str) -> MachineError:
    return MachineError(
        f"the dataset {repo} could not be fetched",
        f"hub: {found}",
        "check the network (or HF_ENDPOINT) and run the same again; what is here is kept",
        "hub-unreachable",
    )
