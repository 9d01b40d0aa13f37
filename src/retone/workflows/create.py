"""From a recipe to a run directory: read, split, encode, resolve, write. Stages meet only there."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import filelock

from retone import __version__, console
from retone.chat_template import ChatTemplate, RowRejected
from retone.config import Recipe, SourceSection
from retone.conversation import Message
from retone.data.collecting import as_trained, read_samples
from retone.data.preparing import PreparedData, prepare_data
from retone.data.sources import BadRows, source_sha256
from retone.data.spool import Trainable, read_rows
from retone.data.tasks import LOOKED_AT, found_task
from retone.errors import InputError
from retone.models.adapters import ADAPTER, read_part
from retone.models.foreign import check_fits, read_config
from retone.models.loading import load_tokenizer, model_facts, require_bitsandbytes
from retone.models.locate import LocatedModel, locate
from retone.models.saving import check_base
from retone.planning import Choice, DataFacts, ModelFacts, Resolved, probe_machine, resolve
from retone.run_dir import (
    Run,
    create_run,
    file_sha256,
    find_run,
    fingerprint,
    newest_run,
    runs_root,
    whole_folder,
)
from retone.training.optim import NEED_BITSANDBYTES
from retone.workflows.diagnosis import allowed, diagnose
from retone.workflows.voices import Voice, united, voices_of_adapter, voices_of_data

VERSIONED = ("torch", "transformers", "peft", "accelerate", "safetensors", "sacrebleu")
SOURCED: tuple[Literal["train", "test", "against"], ...] = ("train", "test", "against")
NOT_PREPARED = ("showcase", "allow", "bad_rows")  # fields that make no other rows
CHECKERS = ("lingua",)  # packages that may be missing
TRAIN_NEW_TOKENS = ("lora", "full", "unfreeze")  # embeddings that the base does not have
KEPT_PREPARED = 8  # prepared data of so many recipes is kept; runs have their own names for it

# Their rendered ids are locked: whatever answers later must reproduce them.
LOCKED_PROMPTS = (
    (Message("user", "Hello! Who are you?"),),
    (Message("system", "Be brief."), Message("user", "  Two  spaces, a\nnewline and an é.")),
    (Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three?")),
)


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before training starts."""

    base: LocatedModel
    tokenizer: Any
    template: ChatTemplate
    data: PreparedData
    resolved: Resolved


def create(recipe: Recipe, *, name: str, fresh: bool = False, offline: bool = False) -> Run:
    """The newest run of the same recipe and data, or a new one.

    Anything different (a field, a byte of the data) makes another fingerprint and so a new run.
    Raises InputError for data that cannot be used, MachineError where the model is not to be had.
    """
    allow = allowed(recipe)
    require_packages(recipe)
    sources = source_hashes(recipe)
    parent = _parent(recipe)
    key = fingerprint(_identity(recipe, sources), file_sha256(parent / ADAPTER) if parent else "")
    found = None if fresh else newest_run(key)
    if found is not None:
        return found
    prepared = prepare(recipe, offline=offline)
    folder = prepared.data.folder
    require_rows((folder / "test.jsonl").stat().st_size, "test")
    diagnosis = diagnose(prepared.data, prepared.resolved, allow)
    diagnosis.require_sound()
    files = [file for file in folder.rglob("*") if file.is_file()]
    older = [file for file in parent.iterdir() if file.is_file()] if parent else []
    if parent:
        check_base(parent, prepared.base)
        check_fits(parent, prepared.base, len(prepared.tokenizer))
    voices = united([voices_of_data(recipe), voices_of_adapter(parent) if parent else []])
    return create_run(
        name,
        run_manifest(
            prepared.base, prepared.template, prepared.resolved, name, key, sources, parent, voices
        ),
        {
            **{f"data/{file.relative_to(folder)}": file for file in files},
            **{f"parent/{file.name}": file for file in older},
            "data/diagnosis.json": diagnosis.as_json(),
            "resolved.json": prepared.resolved.as_json(),
            "template_lock.json": prepared.template.lock(lockable_prompts(prepared.template)),
        },
    )


def prepare(recipe: Recipe, *, offline: bool = False) -> Prepared:
    """Read and encode the data (or find it prepared before) and resolve the recipe."""
    sources = source_hashes(recipe)  # first of all: a model is not fetched for a missing file
    with console.ticker() as tick:
        base = locate(
            recipe.model.name, revision=recipe.model.revision, offline=offline, progress=tick
        )
    if recipe.objective.kind == "text":
        settings = recipe.data.model_copy(update={"task": "text"})
        recipe = recipe.model_copy(update={"data": settings})
    tokenizer = load_tokenizer(base)
    template = ChatTemplate(tokenizer, name=base.name, style=recipe.model.template)
    model = model_facts(base)
    _check_base(recipe, base, model)
    data = _prepared_data(recipe, sources, template, recipe.data.max_length or model.context)
    if data.ledger["text"] and recipe.objective.kind == "sft":
        raise InputError(
            "plain text has no answers to train on",
            "objective.kind is sft, and every row is plain text",
            "leave objective.kind out, or name rows with prompts and answers",
            "plain-text",
        )
    if len(tokenizer) > model.vocabulary and recipe.method.kind not in TRAIN_NEW_TOKENS:
        _require_known_tokens(recipe, tokenizer, data, model.vocabulary)
    facts = DataFacts(
        rows=len(data.rows("train")),
        longest_row=data.ledger["longest_row"],
        longest_answer=data.ledger["longest_answer"],
        task=("text", "the rows are plain text")
        if data.ledger["text"]
        else found_task(read_rows(data.folder / "train.jsonl", LOOKED_AT)),
    )
    resolved = resolve(recipe, probe_machine(), facts, model)
    resolved.chosen["model.template"] = Choice(recipe.model.template, template.origin)
    if template.date is not None:
        because = "the template prints today's date; it is pinned"
        pinned = Choice(template.date.isoformat(), because)
        resolved.chosen["template.date"] = pinned
    return Prepared(base, tokenizer, template, data, resolved)


def _check_base(recipe: Recipe, base: LocatedModel, model: ModelFacts) -> None:
    """InputError where a base cannot be tuned as the recipe asks."""
    if recipe.model.attention == "sdpa" and not model.fuses:
        raise InputError(
            f"{base.name} has no fused attention",
            f"model.attention = sdpa, and its architecture is {model.model_type}",
            "leave model.attention out, or take eager",
            "no-fused-attention",
        )
    if not model.packing:
        return
    packed = f"{base.name} ({model.packing})"
    if recipe.model.quantization != "none":
        raise InputError(
            "the base is packed already",
            f"model.quantization={recipe.model.quantization}, {packed}",
            "leave model.quantization out",
            "quantised-base",
        )
    try:
        recipe.require_unpacked(packed, model.packing)
    except ValueError as error:
        raise InputError(
            "the base's weights are packed", str(error),
            "--set model.name=ORG/NAME   (the original model in 16 bit)", "quantised-base",
        ) from error  # fmt: skip


def _require_known_tokens(
    recipe: Recipe, tokenizer: Any, data: PreparedData, vocabulary: int
) -> None:
    """InputError where rows hold tokens without an embedding, which the method does not train."""
    found = {
        token
        for split in ("train", "validation")
        for row in data.rows(split)
        for token in row.input_ids
        if token >= vocabulary
    }
    if found:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(found))))
        raise InputError(
            f"method.kind={recipe.method.kind} does not train embeddings of new tokens",
            f"the rows hold {names}, and the model has {vocabulary:,} embeddings",
            f"--set method.kind=lora   (or {', '.join(TRAIN_NEW_TOKENS[1:])})",
            "new-tokens",
        )


def source_hashes(recipe: Recipe) -> dict[str, list[str]]:
    """The sha256 of each source by split: train, test, against."""
    found = {split: recipe.data.sources(split) for split in SOURCED}
    return {split: [source_sha256(each) for each in all_] for split, all_ in found.items() if all_}


def another_test(recipe: Mapping[str, Any], path: str) -> SourceSection:
    """Another test file, read as the (dumped) recipe reads its own."""
    data = Recipe.model_validate(recipe).data.model_copy(update={"test": path})
    return data.sources("test")[0]


def read_samples_of(recipe: Mapping[str, Any], source: SourceSection) -> list[Trainable]:
    """The samples of a test source; InputError that counts all rows that cannot be used."""
    bad = BadRows()
    _, samples = read_samples(source, Recipe.model_validate(recipe).data, bad)
    found = [as_trained(sample) for sample in samples]
    if bad.count:
        raise bad.problems()
    return [sample for sample in found if sample is not None]


def require_packages(recipe: Recipe) -> None:
    """MachineError where the recipe needs a package that is not installed."""
    if recipe.model.quantization != "none":
        require_bitsandbytes(f"model.quantization={recipe.model.quantization}")
    if recipe.train.optimizer in NEED_BITSANDBYTES:
        require_bitsandbytes(f"train.optimizer={recipe.train.optimizer}")


def _parent(recipe: Recipe) -> Path | None:
    """The folder of the adapter that is gone on from; InputError where it is none."""
    given = recipe.model.adapter
    if given is None:
        return None
    folder = Path(given) if (Path(given) / ADAPTER).is_file() else find_run(given).tuned
    if not (folder / ADAPTER).is_file():
        raise InputError(
            "model.adapter is no adapter",
            f"{folder} has no {ADAPTER}",
            "name a run that trained lora, or a folder that peft saved",
            "no-adapter",
        )
    read_config(folder)  # refuses what another tool means otherwise
    read_part(folder)  # and what is more than plain LoRA
    return folder


def lockable_prompts(template: ChatTemplate) -> list[tuple[Message, ...]]:
    """Those of the fixed prompts that this template can render (some refuse a system turn)."""
    prompts: list[tuple[Message, ...]] = []
    for prompt in LOCKED_PROMPTS:
        try:
            template.prompt_ids(prompt)
        except RowRejected:
            continue
        prompts.append(prompt)
    return prompts


def _identity(recipe: Recipe, sources: Mapping[str, list[str]]) -> dict[str, Any]:
    """The recipe with hashes in the place of its sources' paths."""
    settings = recipe.model_dump(mode="json")
    settings["model"]["adapter"] = None
    for split in SOURCED:
        given, hashes = recipe.data.sources(split), sources.get(split, [])
        settings["data"][split] = [
            {**source.model_dump(mode="json"), "path": sha256}
            for source, sha256 in zip(given, hashes, strict=True)
        ]
    return settings


def _prepared_data(
    recipe: Recipe, sources: Mapping[str, list[str]], template: ChatTemplate, limit: int
) -> PreparedData:
    """The data as it was prepared before from the same sources and settings, or prepared now."""
    data = _identity(recipe, sources)["data"]
    data = {name: value for name, value in data.items() if name not in NOT_PREPARED}
    lock = template.lock(lockable_prompts(template))
    # Findings name files, and say what was not checked.
    told = [[source.path for source in recipe.data.sources(split)] for split in SOURCED]
    told.append([name for name in CHECKERS if find_spec(name)])
    key = fingerprint(data, told, lock, limit, recipe.train.seed, __version__)[:16]
    folder = runs_root() / ".prepared" / key
    with _prepared_folder(folder) as missing:
        if missing:
            with whole_folder(folder) as staging, console.ticker() as tick:
                prepare_data(
                    recipe.data, template, staging, limit=limit, seed=recipe.train.seed, tick=tick
                )
    found = PreparedData(folder)
    if recipe.data.bad_rows == "error":  # it may have been prepared by one that drops them
        found.require_all_read()
    return found


@contextmanager
def _prepared_folder(folder: Path) -> Iterator[bool]:
    """Whether prepared data is missing, held so that one process alone makes it.

    The oldest of the others are deleted. A block that fails leaves no empty folders behind.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    lock = root / f"{folder.name}.lock"
    try:
        with filelock.FileLock(lock):
            yield not folder.is_dir()
            os.utime(folder)
        kept = sorted(root.glob("*/"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT_PREPARED]:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        lock.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            root.rmdir()
            root.parent.rmdir()


def run_manifest(
    base: LocatedModel,
    template: ChatTemplate,
    resolved: Resolved,
    name: str,
    key: str,
    sources: dict[str, list[str]],
    parent: Path | None,
    voices: list[Voice],
) -> dict[str, Any]:
    """What manifest.json says of a new run: its recipe's name, fingerprint, base, data, machine."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(),
        "recipe": name,
        "fingerprint": key,
        "retone": __version__,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": asdict(probe_machine()),
        "git": _git_commit(),
        "seed": resolved.recipe.train.seed,
        "base": {
            "name": base.name,
            "repo": base.repo,
            "revision": base.revision,
            "origin": base.origin,
            "note": base.note,
            "licence": base.licence,
            "sha256": base.sha256,
        },
        "data_sha256": sources,
        "voices": voices,
        "date": template.date.isoformat() if template.date else None,
        "parent": None
        if parent is None
        else {"folder": str(parent), "sha256": file_sha256(parent / ADAPTER)},
    }


def _git_commit() -> str | None:
    """Commit of the folder that the user works in, if it is a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def require_rows(count: int, what: str) -> None:
    """InputError when a split that is needed is empty."""
    if not count:
        raise InputError(
            f"there are no {what} rows",
            "the split is empty",
            "name a test file: --test FILE, or raise data.eval_fraction",
            "no-rows",
        )
