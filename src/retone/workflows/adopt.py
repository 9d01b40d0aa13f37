"""`retone adopt`: an adapter that another tool saved becomes a run, which every verb can use.

Nothing is made up: how it was trained is not known here, and neither are its rows.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.chat_template import ChatTemplate
from retone.config import Recipe
from retone.errors import InputError, nearest
from retone.models.adapters import ADAPTER
from retone.models.foreign import (
    CONFIG,
    base_named,
    check_fits,
    is_adapter,
    method_fields,
    read_config,
)
from retone.models.loading import load_tokenizer, model_facts, weights_parameters
from retone.models.locate import LocatedModel, locate, model_table
from retone.models.methods import Parameters
from retone.models.saving import BASE_FILE, check_base
from retone.planning import Choice, DataFacts, Resolved, probe_machine, resolve
from retone.recipe_file import complete_recipe
from retone.run_dir import (
    Run,
    all_runs,
    create_run,
    file_sha256,
    find_run,
    fingerprint,
    is_run,
    newest_run,
    read_json,
    runs_root,
)
from retone.workflows.create import lockable_prompts, run_manifest
from retone.workflows.voices import Voice, voices_of_adapter

ELSEWHERE = "trained elsewhere"
LONGEST_ANSWER = 256  # tokens
NEEDED = ("model.dtype", "model.attention")  # of what `resolve` fills, by an answer
NOT_PROVEN = (
    "The adapter names this base model; that it was trained on these very weights is not proven."
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
TEMPLATE = "chat_template.jinja"
_KEPT = (CONFIG, ADAPTER, BASE_FILE)
_BESIDE = (*TOKENIZERS, TEMPLATE, "tokenizer_config.json", "added_tokens.json", "merges.txt")


@dataclass(frozen=True)
class Adopted:
    """The run that an adapter became, or had become before."""

    run: Run

    @property
    def told(self) -> str:
        """What it is and what is known of its base, in a sentence."""
        manifest = read_json(self.run.manifest)
        named = f"{manifest['base']['name']} ({manifest['base']['origin']})"
        return f"the adapter is the run {self.run.name} now, on {named}. {manifest['base']['note']}"

    def as_json(self) -> dict[str, Any]:
        """The object of `retone adopt --json`."""
        manifest, training = read_json(self.run.manifest), read_json(self.run.training)
        base = {name: manifest["base"][name] for name in ("name", "origin", "sha256", "note")}
        found = {"run": str(self.run.path), "base": base, "parameters": training["parameters"]}
        return found | {"proven": manifest["adopted"]["proven"]}

    def show(self) -> None:
        """Print what it is and the way on."""
        console.out().print(escape(self.told.strip()), soft_wrap=True)
        console.out().print(f"next: retone chat {escape(self.run.name)}", soft_wrap=True)


def run_or_adapter(name: str, *, offline: bool = False) -> Run:
    """What RUN names: a run as `find_run` finds it, or a folder with an adapter, adopted once.

    Raises InputError as `find_run` and `adopt` do.
    """
    folder = Path(name)
    if is_run(folder) or not is_adapter(folder):
        return find_run(name)
    owner = Run(folder.parent)
    if is_run(owner.path) and folder == owner.adapter:
        return owner
    read_config(folder)
    sha256 = _sha256(folder)
    before = [run for run in all_runs() if _adopted(run).get("sha256") == sha256]
    if before:
        return before[-1]
    adopted = adopt(folder, offline=offline)
    console.note(adopted.told)
    return adopted.run


def adopt(
    folder: str | Path,
    *,
    model: str | None = None,
    name: str | None = None,
    sets: Sequence[str] = (),
    offline: bool = False,
) -> Adopted:
    """Make a run of an adapter; the same adapter with the same settings stays the same run.

    Args:
        folder: adapter_config.json and adapter_model.safetensors, and a tokenizer where it has one.
        model: the base; the one that the adapter names when left out.
        name: of the run; the folder's when left out.
        sets: `section.field=value`, such as model.quantization=nf4 or data.system="Be brief."
        offline: never ask a network.

    Raises:
        InputError: the adapter is none that loads here, its base is not to be found or is another
            one, or its tensors do not fit the base.
        MachineError: the base cannot be fetched.
    """
    folder = Path(folder).expanduser()
    if not is_adapter(folder):
        raise InputError(
            "the folder holds no adapter",
            f"{folder} has no {CONFIG}",
            "name a folder that peft's save_pretrained wrote",
            "no-adapter",
        )
    config = read_config(folder)
    named, revision = base_named(config)
    recipe = _recipe(folder, config, model or named, None if model else revision, sets)
    base = _located(folder, recipe, offline)
    tokenizer, origin = _tokenizer(folder, base, recipe.model.template)
    check_base(folder, base)
    check_fits(folder, base, len(tokenizer))
    told = read_json(folder / BASE_FILE) if (folder / BASE_FILE).is_file() else None
    proven = isinstance(told, dict) and "sha256" in told
    if not proven:
        base = replace(base, note=f"{base.note} {NOT_PROVEN}".strip())
    known = {
        "model.name": "as told" if model else f"{CONFIG} names it",
        **{f"method.{field}": CONFIG for field in method_fields(config)},
        "evaluate.max_new_tokens": "its longest answers are not known",
        **{item.partition("=")[0].strip(): "as told" for item in sets},
    }
    resolved = resolve_untrained(recipe, base, known, origin)
    sha256 = _sha256(folder)
    key = fingerprint(recipe.model_dump(mode="json"), base.sha256, sha256)
    run = newest_run(key) or keep(
        folder, name or _word(folder), base, tokenizer, resolved, key,
        {"adopted": {"folder": str(folder.resolve()), "sha256": sha256, "proven": proven}},
        voices_of_adapter(folder),
    )  # fmt: skip
    return Adopted(run)


def trained_here(manifest: Mapping[str, Any]) -> bool:
    """Whether a run has rows, settings of a training, and curves; those made of adapters do not."""
    return not {"adopted", "blended"} & manifest.keys()


def resolve_untrained(
    recipe: Recipe, base: LocatedModel, known: Mapping[str, str], template: str
) -> Resolved:
    """The recipe with what answering needs filled in, and reasons for what is known alone.

    Args:
        recipe: what is known, over defaults.
        base: the base model.
        known: field -> how it is known.
        template: where the chat template comes from; it travels in the adapter's tokenizer.
    """
    model = model_facts(base)
    filled = resolve(
        recipe,
        probe_machine(),
        DataFacts(rows=0, longest_row=model.context, longest_answer=0, task=("auto", "")),
        model,
    ).chosen
    chosen = {name: why for name, why in filled.items() if name in NEEDED}
    values = recipe.model_dump()
    values["model"]["template"] = "auto"
    for field, choice in chosen.items():
        section, _, name = field.partition(".")
        values[section][name] = choice.value
    for field, because in known.items():
        section, _, name = field.partition(".")
        chosen[field] = Choice(values[section][name], because)
    chosen["model.template"] = Choice("auto", template)
    return Resolved(Recipe.model_validate(values), chosen, None)


def keep(
    adapter: Path,
    name: str,
    base: LocatedModel,
    tokenizer: Any,
    resolved: Resolved,
    key: str,
    facts: dict[str, Any],
    voices: list[Voice],
) -> Run:
    """A new run around an adapter's files, without rows and without a training.

    Args:
        adapter: the folder that is copied: other tools write into theirs again.
        name: of the run.
        base: what the adapter is for.
        tokenizer: with the chat template that it is asked through; goes with the adapter.
        resolved: what is known of it.
        key: what makes it the same run.
        facts: what the manifest says of where it comes from.
        voices: of real persons.
    """
    template = ChatTemplate(tokenizer, name=base.name)
    trained = weights_parameters(adapter)
    root = runs_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adopted.", dir=root) as place:
        staging = Path(place)
        (staging / "data").mkdir()
        tokenizer.save_pretrained(staging / "adapter")
        for file in _KEPT:
            if (adapter / file).is_file():
                shutil.copyfile(adapter / file, staging / "adapter" / file)
        for empty in ("metrics", "data/train", "data/validation", "data/test"):
            (staging / f"{empty}.jsonl").touch()
        files = {str(file.relative_to(staging)): file for file in staging.rglob("*.*")}
        return create_run(
            name,
            run_manifest(base, template, resolved, name, key, {}, None, voices) | facts,
            {
                **files,
                "data/ledger.json": {"sources": []},
                "resolved.json": resolved.as_json(),
                "template_lock.json": template.lock(lockable_prompts(template)),
                "training.json": {
                    "where": ELSEWHERE,
                    "best_step": None,
                    "seconds": None,
                    "parameters": asdict(
                        Parameters(trained, trained + weights_parameters(base.path))
                    ),
                },
            },
        )


def _recipe(
    folder: Path, config: Mapping[str, Any], model: str, revision: str | None, sets: Sequence[str]
) -> Recipe:
    """What is known of an adapter, as a recipe."""
    if not model:
        raise InputError(
            "the adapter does not name its base model",
            f"{folder / CONFIG}: base_model_name_or_path is empty",
            f"retone adopt {folder} --model MODEL",
            "no-base",
        )
    local = Path(model).expanduser()
    values = {
        "model": {"name": str(local.resolve()) if local.is_dir() else model, "revision": revision},
        "data": {"train": ELSEWHERE},
        "method": method_fields(config),
        "evaluate": {"max_new_tokens": LONGEST_ANSWER},
    }
    recipe = complete_recipe(values, str(folder / CONFIG), sets=sets)
    data = recipe.data.model_copy(update={"train": ELSEWHERE})  # no path that could be anchored
    return recipe.model_copy(update={"data": data})


def _located(folder: Path, recipe: Recipe, offline: bool) -> LocatedModel:
    """The base; an InputError says what to type where it is not to be found."""
    name = recipe.model.name
    try:
        with console.ticker() as tick:
            return locate(name, revision=recipe.model.revision, offline=offline, progress=tick)
    except InputError as error:
        near = nearest(Path(name).name.lower(), model_table())
        raise InputError(
            f"the base model of the adapter was not found{near}",
            f"{folder}: its base is {name}; {error.found}",
            f"retone adopt {folder} --model MODEL   (a model folder here, a hub id, or one of "
            f"{', '.join(model_table())})",
            "base-not-found",
        ) from error


def _tokenizer(folder: Path, base: LocatedModel, style: str) -> tuple[Any, str]:
    """What an adapter is asked through, and where its chat template comes from.

    Tokens that an adapter's own tool added are in its own tokenizer alone; a template it has none
    of is the base's. A date in the template is pinned.
    """
    tokenizer, origin = load_tokenizer(base), "the base model's chat template"
    if any((folder / name).is_file() for name in TOKENIZERS):
        try:
            own = load_tokenizer(replace(base, path=folder))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                "the adapter's tokenizer cannot be read",
                f"{folder}: {str(error).splitlines()[0]}",
                f"save it again, or remove {', '.join(TOKENIZERS)} to take the base model's",
                "broken-tokenizer",
            ) from error
        _check_vocabulary(folder, own.get_vocab(), base, tokenizer.get_vocab())
        if own.chat_template:
            origin = "the adapter's own chat template"
        else:
            own.chat_template = tokenizer.chat_template
        tokenizer = own
    elif (folder / TEMPLATE).is_file():
        tokenizer.chat_template = (folder / TEMPLATE).read_text(encoding="utf-8")
        origin = "the adapter's own chat template"
    template = ChatTemplate(tokenizer, name=base.name, style=style)
    tokenizer.chat_template = template.text
    return tokenizer, origin if style == "auto" else template.origin


def _check_vocabulary(
    folder: Path, own: Mapping[str, int], base: LocatedModel, theirs: Mapping[str, int]
) -> None:
    """InputError where a token has another number: the model would read other words."""
    moved = [token for token, number in own.items() if theirs.get(token, number) != number]
    if moved:
        raise InputError(
            "the adapter was trained with another vocabulary than its base has",
            f"{folder}: {len(moved)} tokens have other numbers than in {base.name} "
            f"({base.origin}), the first is {moved[0]!r}",
            f"retone adopt {folder} --model MODEL   (the one that it was trained on)",
            "other-vocabulary",
        )


def _adopted(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run.manifest).get("adopted", {})
    return found


def _sha256(folder: Path) -> str:
    """Of everything in an adapter's folder that its answers depend on."""
    files = sorted(name for name in {*_KEPT, *_BESIDE} if (folder / name).is_file())
    return fingerprint({name: file_sha256(folder / name) for name in files})


def _word(folder: Path) -> str:
    """The folder's name as the name of a run."""
    return re.sub(r"[^\w.-]+", "-", folder.resolve().name).lstrip("-.") or "adapter"
