"""From a recipe to a run directory: read, split, encode, resolve, write. Stages meet only there."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retone import __version__, console
from retone.batch import EncodedRow
from retone.chat_template import ChatTemplate, RowRejected
from retone.config import Recipe
from retone.conversation import Conversation, Message
from retone.data.checks import Ledger, encode_all, require_trained
from retone.data.formats import detect_shape, to_conversations
from retone.data.mixing import split_by_content
from retone.data.sources import read_rows, source_path
from retone.errors import InputError
from retone.models.loading import load_tokenizer
from retone.models.locate import LocatedModel, locate
from retone.planning import Choice, DataFacts, ModelFacts, Resolved, probe_machine, resolve
from retone.run_dir import Run, create_run, file_sha256, fingerprint, newest_run

VERSIONED = ("torch", "transformers", "peft", "accelerate", "safetensors", "sacrebleu")
REUSED_WORDS = 0.5  # a rewrite's answers hold at least this share of the prompt's words

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
    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    encoded: list[EncodedRow]
    ledgers: list[Ledger]  # of the training and of the validation rows
    resolved: Resolved


def create(recipe: Recipe, *, name: str, fresh: bool = False, offline: bool = False) -> Run:
    """The newest run of the same recipe and data, or a new one.

    Anything different (a field, a byte of the data) makes another fingerprint and so a new run.
    Raises InputError for data that cannot be used, MachineError where the model is not to be had.
    """
    sources = {key: file_sha256(source_path(path)) for key, path in _sources(recipe).items()}
    settings = recipe.model_dump(mode="json")
    settings["data"].update(sources)
    key = fingerprint(settings)
    found = None if fresh else newest_run(key)
    if found is not None:
        return found
    prepared = prepare(recipe, offline=offline)
    splits = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    files = {f"data/{split}.jsonl": [as_row(row) for row in rows] for split, rows in splits.items()}
    return create_run(
        name,
        _manifest(prepared, name, key, sources),
        {
            **files,
            "data/ledger.json": {
                "sources": [ledger.as_json() for ledger in prepared.ledgers if ledger.read]
            },
            "resolved.json": prepared.resolved.as_json(),
            "template_lock.json": prepared.template.lock(lockable_prompts(prepared.template)),
        },
    )


def prepare(recipe: Recipe, *, offline: bool = False) -> Prepared:
    """Read and encode the data and resolve the recipe; nothing is written."""
    rows, shape = _read(recipe.data.train, recipe.data.columns, recipe.data.system)
    if recipe.data.test is not None:
        test = read_conversations(recipe.model_dump(), recipe.data.test)
    else:
        rows, test = split_by_content(rows, recipe.data.eval_fraction, recipe.train.seed)
    require_rows(test, "test")
    train, validation = split_by_content(rows, recipe.data.validation_fraction, recipe.train.seed)
    with console.ticker() as tick:
        base = locate(
            recipe.model.name, revision=recipe.model.revision, offline=offline, progress=tick
        )
    tokenizer = load_tokenizer(base)
    template = ChatTemplate(tokenizer, name=base.name)
    context = base.context or 2048
    limit = recipe.data.max_length or context
    ledger = Ledger(recipe.data.train, shape)
    encoded = encode_all(train, template, ledger, limit)
    require_trained(ledger)
    held = Ledger(f"{recipe.data.train} (validation)", shape)
    encode_all(validation, template, held, limit)
    lengths = [*ledger.lengths, *held.lengths]
    facts = DataFacts(
        rows=len(encoded),
        longest_row=max(lengths),
        longest_answer=_longest_answer(train, tokenizer),
        copies_prompt=_reuses_prompt(train),
    )
    model = ModelFacts(parameters=weights_parameters(base.path), context=context)
    resolved = resolve(recipe, probe_machine(), facts, model)
    if template.date is not None:
        because = "the template prints today's date; it is pinned"
        pinned = Choice(template.date.isoformat(), because)
        resolved.chosen["template.date"] = pinned
    return Prepared(
        base, tokenizer, template, train, validation, test, encoded, [ledger, held], resolved
    )


def read_conversations(recipe: Mapping[str, Any], name: str) -> list[Conversation]:
    """The rows of a data file, read as the (dumped) recipe says."""
    data = recipe["data"]
    return _read(name, data["columns"], data["system"])[0]


def as_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as it stands in the run's data files."""
    return asdict(conversation)


def from_row(row: dict[str, Any]) -> Conversation:
    """The inverse of `as_row`."""
    messages = tuple(Message(**message) for message in row["messages"])
    return Conversation(messages, row["source"], row["row"], row["extra"])


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


def weights_parameters(folder: Path) -> int:
    """Number of stored parameters, read from the safetensors headers alone."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - a safetensors handle is no dict
                size = 1
                for extent in tensors.get_slice(key).get_shape():
                    size *= extent
                total += size
    return total


def _sources(recipe: Recipe) -> dict[str, str]:
    found = {"train": recipe.data.train, "test": recipe.data.test}
    return {key: path for key, path in found.items() if path is not None}


def _read(
    name: str, columns: Mapping[Any, str], system: str | None
) -> tuple[list[Conversation], str]:
    """The conversations of a file, and its shape with the evidence."""
    path = source_path(name)
    rows = read_rows(path)
    shape = detect_shape(rows, columns, path)
    found = to_conversations(rows, shape, path, system)
    return found, f"{shape.name} ({shape.evidence})"


def _longest_answer(rows: list[Conversation], tokenizer: Any) -> int:
    answers = [row.answer for row in rows if row.answer]
    encoded = tokenizer(answers, add_special_tokens=False)["input_ids"] if answers else [[]]
    return max(map(len, encoded))


def _reuses_prompt(rows: list[Conversation]) -> bool:
    """True where the answers are made mostly of their prompts' words."""
    shares = []
    for row in rows:
        said, answer = (Counter(text.lower().split()) for text in (row.question, row.answer))
        if said and len(row.messages) <= 3:
            shares.append(sum((said & answer).values()) / sum(said.values()))
    return bool(shares) and sum(shares) / len(shares) >= REUSED_WORDS


def _manifest(prepared: Prepared, name: str, key: str, sources: dict[str, str]) -> dict[str, Any]:
    base = prepared.base
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
        "seed": prepared.resolved.recipe.train.seed,
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
        "date": prepared.template.date.isoformat() if prepared.template.date else None,
        "parent": None,
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


def require_rows(rows: list[Conversation], what: str) -> None:
    """InputError when a split that is needed is empty."""
    if not rows:
        raise InputError(
            f"there are no {what} rows",
            "the split is empty",
            "name a test file: --test FILE, or raise data.eval_fraction",
            "no-rows",
        )
