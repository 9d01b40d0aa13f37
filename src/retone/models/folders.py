"""Whether a folder holds a complete model: files by name, shards by index, sizes by header."""

from __future__ import annotations

import json
import re
from pathlib import Path

from retone.errors import InputError

_INDEX = "model.safetensors.index.json"


def folder_problems(folder: Path) -> list[str]:
    """Everything that keeps a folder from being a usable model; empty when it is complete."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    problems = missing_parts(names)
    shards: set[str] = set()
    if _INDEX in names:
        try:
            shards = set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{_INDEX} cannot be read")
        missing = sorted(shards - names)
        if missing:
            problems.append(f"{len(missing)} of {len(shards)} shards missing: {', '.join(missing)}")
    weights = sorted((shards | {"model.safetensors"}) & names)
    return problems + [problem for name in weights if (problem := _cut_short(folder / name))]


def missing_parts(names: set[str]) -> list[str]:
    """What is missing among the files of a folder or repository, by their names."""
    problems = [] if "config.json" in names else ["config.json is missing"]
    if not {"model.safetensors", _INDEX} & names:
        problems.append(_weights_problem(names))
    whole = {"tokenizer.json", "tokenizer.model", "vocab.txt"} & names
    if not whole and not {"vocab.json", "merges.txt"} <= names:
        problems.append("the tokenizer is missing (tokenizer.json or tokenizer.model)")
    return problems


def _weights_problem(names: set[str]) -> str:
    pickles = sorted(name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name))
    if pickles:
        return (
            f"the weights are pickle files ({', '.join(pickles)}), which can run code when opened; "
            "safetensors only: save them again with save_pretrained"
        )
    if "adapter_model.safetensors" in names:
        return "model.safetensors is missing (adapter_model.safetensors is an adapter, not a model)"
    return "the weights are missing (model.safetensors)"


def _cut_short(file: Path) -> str | None:
    """Compare the size that a safetensors header promises with the file's own."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        header_bytes = int.from_bytes(handle.read(8), "little")
        text = handle.read(min(header_bytes, size))
    try:
        tensors = {key: value for key, value in json.loads(text).items() if key != "__metadata__"}
        data_bytes = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{file.name} is not a safetensors file, or only the beginning of one ({size} bytes)"
    promised = 8 + header_bytes + data_bytes
    return None if size == promised else f"{file.name} has {size} bytes instead of {promised}"


def refuse_incomplete(what: str, problems: list[str]) -> None:
    """InputError where there are problems."""
    if problems:
        raise InputError(
            f"{what} is not a complete model",
            "; ".join(problems),
            "give a folder with config.json, safetensors weights and a tokenizer, as saved by "
            "save_pretrained of model and tokenizer",
            "incomplete-model",
        )
