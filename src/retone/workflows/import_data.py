"""The datasets that Axolotl's and LlamaFactory's training YAML names, as sources of a recipe.

Formats and their fields: docs.axolotl.ai (dataset formats), LlamaFactory's data/README.md. Row
shapes are found from the rows, so most sources need only a path and the columns that were renamed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from retone.config import HUB
from retone.data.fields import brief
from retone.data.turns import CONTENT_KEYS, ROLE_KEYS, ROLE_OF
from retone.errors import InputError
from retone.workflows.import_fields import OBJECTIVE, NoCounterpart, names, number, text, whole

T = TypeVar("T")
Source = dict[str, Any]  # fields of a SourceSection

FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|md|gz|zst|zip)$", re.IGNORECASE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+]*://")  # s3://, gs://, https://
SLICE = re.compile(r"(\w+)\[:(\d+)(%?)\]")  # train[:1000], train[:10%]
LOADERS = ("json", "csv", "parquet", "text", "arrow")  # in the place of a path: see data_files

# Row shape of Axolotl -> (format, part -> column) where the rows alone would not tell.
SHAPES: dict[str, tuple[str, dict[str, str]]] = {
    "alpaca": ("alpaca", {}),
    "alpaca_chat": ("auto", {}),
    "sharegpt": ("auto", {}),
    "chat_template": ("auto", {}),
    "completion": ("text", {}),
    "pretrain": ("text", {}),
    "gpteacher": ("alpaca", {"output": "response"}),
    "oasst": ("alpaca", {"instruction": "INSTRUCTION", "output": "RESPONSE"}),
    "summarizetldr": ("pair", {"prompt": "article", "completion": "summary"}),
    "metharme": ("pair", {"completion": "generation"}),
}
AXOLOTL_COLUMNS = {
    "field": "text",
    "text_column": "text",
    "field_messages": "messages",
    "field_system": "system",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
}
LLAMAFACTORY_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
}
TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "call",
}
WHY = {
    "data_files": "files inside a hub dataset cannot be picked; fetch them, or name a split",
    "train_on_eos": "the token that ends an answer is always trained",
    "train_on_eot": "the token that ends an answer is always trained",
    "format": "prompts are rendered by the chat template (model.template)",
    "no_input_format": "prompts are rendered by the chat template (model.template)",
    "system_format": "prompts are rendered by the chat template (model.template)",
    "conversation": "prompts are rendered by the chat template (model.template)",
    "message_field_training": "turns that say `training` or `weight` are read under these names",
    "message_property_mappings": "turns are read by the usual names of role and content",
    "roles": "turns are read by the usual names of roles; rename others in the file",
    "roles_to_train": "data.train_on: all assistant turns, the last one, or every token",
    "trust_remote_code": "datasets that bring their own code are not loaded",
    "ranking": OBJECTIVE,
}
# Values that change nothing here.
NO_NEED: dict[str, tuple[Any, ...]] = {
    "ds_type": LOADERS,
    "train_on_eos": ("turn",),
    "train_on_eot": ("turn",),
    "roles_to_train": (["assistant"],),
    "system_format": ("{system}",),
    "load_from": ("file",),
}
UNKNOWN = "unknown to retone; docs/cli.md lists the fields there are"


@dataclass
class Draft:
    """A recipe in the making.

    Attributes:
        yaml: the file that is translated.
        folder: of the recipe, which paths of data are relative to.
        values: retone field -> value.
        notes: retone field -> where the value comes from.
        sources: "train" and "test" -> sources.
        untranslated: (field, value, why) of what has no counterpart.
        problems: values that no tool could use.
    """

    yaml: Path
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    sources: dict[str, list[Source]] = field(default_factory=lambda: {"train": [], "test": []})
    untranslated: list[tuple[str, Any, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def put(self, target: str, value: Any, note: str) -> None:
        """Set a field of the recipe; `note` says where from."""
        self.values[target], self.notes[target] = value, note

    def leave(self, name: str, value: Any, why: str) -> None:
        """List a value that has no counterpart."""
        self.untranslated.append((name, value, why))

    def read(self, name: str, value: Any, convert: Callable[[Any], T]) -> T | None:
        """The converted value; None where it is wrong or has no counterpart, which is noted."""
        try:
            return convert(value)
        except NoCounterpart as reason:
            self.leave(name, value, str(reason))
        except ValueError as error:
            self.problems.append(f"{name}: {error}, found {brief(value)}")
        return None

    def find(self, path: str, *folders: Path) -> Path | None:
        """Where a path leads, from the first folder that has it; by default one of `folders`."""
        places = [folder / Path(path).expanduser() for folder in folders or self.folders]
        return next((place for place in places if place.exists()), None)

    @property
    def folders(self) -> tuple[Path, Path]:
        """Where the paths of a YAML may begin: the tools take the current folder."""
        return Path.cwd(), self.yaml.parent

    def write_path(self, name: str, path: str, *folders: Path) -> str:
        """A path of the YAML as the recipe has to write it; one that leads nowhere is listed."""
        place = self.find(path, *folders)
        if place is None:
            self.leave(name, path, "no such file from here: mend the source's path")
        given = Path(path).expanduser()
        if given.is_absolute():
            return str(given)
        written = place or (folders or self.folders)[0] / given
        return Path(os.path.relpath(written, self.folder)).as_posix()

    def data_path(self, name: str, path: str) -> str:
        """A file, or else the id of a dataset on the hub, as the recipe has to write it."""
        if ELSEWHERE.match(path):
            self.leave(name, path, "fetch it, and give the file as the source's path")
            return path
        if FILE.search(path) or path[0] in "./~" or self.find(path):
            return self.write_path(name, path)
        return HUB + path

    def leave_rest(self, place: str, entry: Mapping[Any, Any]) -> None:
        """List the fields of a dataset that were not read and that say anything."""
        for key, value in entry.items():
            if value not in (None, False, "", *NO_NEED.get(key, ())):
                self.leave(f"{place}.{key}", value, WHY.get(key, UNKNOWN))


def axolotl_sources(left: dict[str, Any], draft: Draft) -> None:
    """`datasets`, `pretraining_dataset` and `test_datasets`, taken out of `left`."""
    for name in ("datasets", "pretraining_dataset", "test_datasets"):
        given = left.pop(name, None)
        found = draft.sources["test" if name == "test_datasets" else "train"]
        for index, entry in enumerate(given if isinstance(given, list) else [given]):
            place = f"{name}[{index}]"
            entry = {"path": entry} if isinstance(entry, str) else entry
            if isinstance(entry, dict):
                found += _axolotl_source(place, dict(entry), left, draft)
            elif entry is not None:
                draft.problems.append(f"{place}: a dataset with a path is expected")


def _axolotl_source(
    place: str, entry: dict[str, Any], left: dict[str, Any], draft: Draft
) -> list[Source]:
    """The sources of one entry: one, or one for each of its files."""
    shape = entry.pop("type", None)
    if isinstance(shape, dict):
        entry, shape = {**shape, **entry}, "alpaca"
    path = draft.read(f"{place}.path", entry.pop("path", None), text) or ""
    paths = [path]
    if entry.get("data_files") and (path in LOADERS or draft.find(path)):
        paths = draft.read(f"{place}.data_files", entry.pop("data_files"), names) or []
    kind = re.split(r"[:.]", shape)[0] if isinstance(shape, str) else ""
    if shape is not None and kind not in SHAPES:
        draft.leave(f"{place}.type", shape, "found from the rows; retone inspect tells what was")
    form, columns = SHAPES.get(kind, ("auto", {}))
    columns = dict(columns)
    for key, role in AXOLOTL_COLUMNS.items():
        if entry.get(key):
            columns[role] = draft.read(f"{place}.{key}", entry.pop(key), text) or ""
    for key in ("chat_template", "chat_template_jinja", "train_on_inputs"):
        if key in entry and left.get(key) in (None, entry[key]):
            left[key] = entry.pop(key)
    if entry.get("system_prompt"):
        left.setdefault("default_system_message", entry.pop("system_prompt"))
    _drop_usual_turns(entry)
    source = _common_fields(place, entry, form, columns, draft)
    draft.leave_rest(place, entry)
    return [{"path": draft.data_path(f"{place}.path", one), **source} for one in paths if one]


def _drop_usual_turns(entry: dict[str, Any]) -> None:
    """Leave out how turns are spelled where every spelling is read anyway."""
    usual = {"role": ROLE_KEYS, "content": CONTENT_KEYS}
    for key, known in (("message_field_role", ROLE_KEYS), ("message_field_content", CONTENT_KEYS)):
        if entry.get(key) in known:
            del entry[key]
    mapped = entry.get("message_property_mappings")
    if isinstance(mapped, dict) and all(mapped[k] in usual.get(k, (k,)) for k in mapped):
        del entry["message_property_mappings"]
    roles = entry.get("roles")
    if isinstance(roles, dict) and all(
        ROLE_OF.get(str(spelled)) == role
        for role, spellings in roles.items()
        for spelled in (spellings if isinstance(spellings, list) else [spellings])
    ):
        del entry["roles"]


def _common_fields(
    place: str, entry: dict[str, Any], form: str, columns: Mapping[str, str | None], draft: Draft
) -> Source:
    """Shape, columns, configuration, revision, split: what both tools say of a source."""
    renamed = {part: column for part, column in columns.items() if column not in (None, part)}
    source: Source = {"format": form, "columns": renamed}
    source = {key: value for key, value in source.items() if value not in ("auto", {})}
    for key, target in (("name", "name"), ("subset", "name"), ("revision", "revision")):
        if entry.get(key):
            source[target] = draft.read(f"{place}.{key}", entry.pop(key), text)
    split = entry.pop("split", None) or entry.pop("train_on_split", None)
    part = SLICE.fullmatch(split) if isinstance(split, str) else None
    if part:
        split, size, percent = part.groups()
        source["sample"] = int(size) / 100 if percent else int(size)
        note = "as many are picked, but by content instead of the first ones"
        draft.leave(f"{place}.split", part.string, note)
    if split and split != "train":
        source["split"] = draft.read(f"{place}.split", split, text)
    return source


def llamafactory_sources(left: dict[str, Any], draft: Draft) -> None:
    """`dataset` and `eval_dataset`, looked up in dataset_info.json and taken out of `left`."""
    folder = draft.read("dataset_dir", left.pop("dataset_dir", "data"), text) or "data"
    info, place = _dataset_info(folder, draft)
    limit = (
        draft.read("max_samples", left.pop("max_samples"), whole) if "max_samples" in left else None
    )
    for key, split in (("dataset", "train"), ("eval_dataset", "test")):
        given = left.pop(key, None)
        for name in (draft.read(key, given, names) or []) if given else []:
            entry = info.get(name)
            if isinstance(entry, dict):
                source = _llamafactory_source(f"{key} {name}", dict(entry), left, place, draft)
            elif folder == "ONLINE":
                source = {"path": HUB + name}
            else:
                source = {"path": name}
                where = f"in {place}" if info else f"no dataset_info.json in {folder} or beside"
                draft.leave(key, name, f"not defined ({where}): give the source's path")
            if limit is not None:
                source["sample"] = min(limit, source.get("sample") or limit)
            draft.sources[split].append(source)
    shares = left.pop("interleave_probs", None)
    weights = draft.read("interleave_probs", shares, names) if shares else []
    for source, weight in zip(draft.sources["train"], weights or [], strict=False):
        source["weight"] = draft.read("interleave_probs", weight, number)


def _dataset_info(folder: str, draft: Draft) -> tuple[dict[str, Any], Path]:
    """LlamaFactory's table of datasets, and the folder that it stands in."""
    for place in (Path.cwd() / folder, draft.yaml.parent / folder, draft.yaml.parent):
        file = place / "dataset_info.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError:
            continue
        except (ValueError, RecursionError) as error:
            found = f"not JSON: {error}"
        if isinstance(found, dict):
            return found, place
        raise InputError(
            "LlamaFactory's table of datasets cannot be read",
            f"{file}: {found if isinstance(found, str) else 'an object is expected'}",
            "mend it, or move it away and name the data files in the recipe by hand",
            "broken-dataset-info",
        )
    return {}, Path(folder)


def _llamafactory_source(
    place: str, entry: dict[str, Any], left: Mapping[str, Any], folder: Path, draft: Draft
) -> Source:
    sharegpt = entry.pop("formatting", "alpaca") != "alpaca"
    given = entry.pop("columns", None) or {}
    columns: dict[str, str | None] = {}
    for key, column in given.items() if isinstance(given, dict) else ():
        if key in LLAMAFACTORY_COLUMNS:
            columns[LLAMAFACTORY_COLUMNS[key]] = draft.read(f"{place}.columns.{key}", column, text)
        else:
            draft.leave(f"{place}.columns.{key}", column, "not read: text and turns only")
    form = "auto" if sharegpt or entry.get("ranking") else "alpaca"
    if left.get("stage") == "pt":
        form, columns = "text", {"text": columns.get("instruction")}
    tags = entry.pop("tags", None) or {}
    for key, tag in tags.items() if isinstance(tags, dict) else ():
        known = {"role_tag": tag in ROLE_KEYS, "content_tag": tag in CONTENT_KEYS}
        if not known.get(key, ROLE_OF.get(str(tag)) == TAGS.get(key)):
            draft.leave(f"{place}.tags.{key}", tag, "turns are read by the usual names; rename it")
    source = _common_fields(place, entry, form, columns, draft)
    if entry.get("num_samples"):
        source["sample"] = draft.read(f"{place}.num_samples", entry.pop("num_samples"), whole)
    hub, file = entry.pop("hf_hub_url", None), entry.pop("file_name", None)
    if hub:
        path = HUB + (draft.read(f"{place}.hf_hub_url", hub, text) or "")
    elif file:
        name = draft.read(f"{place}.file_name", file, text) or "?"
        path = draft.write_path(f"{place}.file_name", name, folder)
    else:
        path = place
        draft.leave(place, None, "neither hf_hub_url nor file_name: give the source's path")
    draft.leave_rest(place, entry)
    return {"path": path, **source}


SOURCES: dict[str, Callable[[dict[str, Any], Draft], None]] = {
    "Axolotl": axolotl_sources,
    "LlamaFactory": llamafactory_sources,
}
