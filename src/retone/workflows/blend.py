"""`retone blend`: the adapters of several runs as one, each with a weight."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from rich.markup import escape
from safetensors import safe_open

from retone import console
from retone.config import DataSection, MethodSection, Recipe
from retone.errors import InputError, nearest
from retone.models.adapters import ADAPTER, more_than_lora
from retone.models.foreign import CONFIG, check_fits, hollow_model, method_fields
from retone.models.saving import BASE_FILE, save_tuned
from retone.planning import Resolved
from retone.run_dir import Run, file_sha256, fingerprint, newest_run, read_json
from retone.workflows.adopt import (
    ELSEWHERE,
    LONGEST_ANSWER,
    NOT_PROVEN,
    keep,
    resolve_untrained,
    run_or_adapter,
)
from retone.workflows.load import Opened, open_run
from retone.workflows.voices import real_voices, united

# How adapters are put together; peft's names. The sums of `cat` and `svd` are those of the whole
# updates B A; the others add up the As and the Bs for themselves, which is another thing.
WAYS = {
    "linear": "weighted sums of the As and of the Bs",
    "cat": "the exact sum of the updates; the ranks add up",
    "svd": "the sum of the updates, cut down to the largest rank by SVD (or to --rank)",
    "ties": "trimmed to --density, signs elected (Yadav et al. 2023, arXiv:2306.01708)",
    "dare_linear": "random parts dropped, the rest scaled up (Yu et al. 2023, arXiv:2311.03099)",
    "dare_ties": "dropped as in dare_linear, signs elected as in ties",
    "magnitude_prune": "the smallest entries dropped",
    "ties_svd": "ties on the updates, then SVD",
    "dare_linear_svd": "dare_linear on the updates, then SVD",
    "dare_ties_svd": "dare_ties on the updates, then SVD",
    "magnitude_prune_svd": "magnitude_prune on the updates, then SVD",
}
_TEMPLATE = ("template_sha256", "prompts")  # either of them tells a template in its lock


@dataclass(frozen=True)
class Part:
    """One run, how much of it, and its adapter's config."""

    run: Run
    weight: float
    config: dict[str, Any]


@dataclass(frozen=True)
class Blended:
    """A run whose adapter is made of others."""

    run: Run

    def as_json(self) -> dict[str, Any]:
        """The object of `retone blend --json`."""
        manifest, training = read_json(self.run.manifest), read_json(self.run.training)
        parameters = training["parameters"]
        return {"run": str(self.run.path), **manifest["blended"], "parameters": parameters}

    def show(self) -> None:
        """Print what was put together and the way on."""
        made = read_json(self.run.manifest)["blended"]
        parts = ", ".join(f"{one['weight']:g} of {one['run']}" for one in made["parents"])
        told = f"{self.run.path}: {parts}, by {made['how']}"
        console.out().print(escape(told), soft_wrap=True)
        console.out().print(
            f"next: retone evaluate {escape(self.run.name)} --test FILE", soft_wrap=True
        )


def blend(
    parts: Sequence[str],
    *,
    name: str,
    how: str = "linear",
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    offline: bool = False,
) -> Blended:
    """Put the LoRA adapters of several runs together by peft's `add_weighted_adapter`.

    The same parts put together in the same way stay the same run.

    Args:
        parts: "RUN=WEIGHT"; one part alone is that adapter made stronger, weaker or negative.
        name: of the new run.
        how: one of `WAYS`.
        density: share of the entries that is kept, for ties, dare and magnitude_prune.
        rank: of the result, for svd; the largest of the parts when left out.
        seed: of what dare drops.
        offline: never ask a network.

    Raises:
        InputError: a part is no run, no weight, or more than LoRA; the parts' bases or chat
            templates are not the same; their ranks do not go with `how`.
    """
    _check_way(how, density, rank)
    found = [_part(item, offline) for item in parts]
    _check_parts(found, how)
    facts = {
        "how": how,
        "density": density,
        "rank": rank,
        "seed": seed if how.startswith("dare") else None,
        "parents": [
            {"run": part.run.name, "weight": part.weight,
             "sha256": file_sha256(part.run.adapter / ADAPTER)} for part in found
        ],
    }  # fmt: skip
    key = fingerprint("blended", [(part.config, part.weight) for part in found], facts)
    before = newest_run(key)
    if before is not None:
        return Blended(before)
    opened = open_run(found[0].run, offline=offline)
    model = _loaded(found, opened)
    torch.manual_seed(seed)
    model.base_model.add_weighted_adapter(
        [_label(at) for at in range(len(found))], [part.weight for part in found], "default",
        combination_type=how, density=density, svd_rank=rank,
    )  # fmt: skip
    return Blended(_kept(model, opened, [part.run for part in found], name, key, facts))


def _check_way(how: str, density: float | None, rank: int | None) -> None:
    """InputError for an unknown way, or a number that it needs or cannot use."""
    prunes = how.startswith(("ties", "dare", "magnitude"))
    problems = []
    if how not in WAYS:
        problems.append(f"how={how!r} is not known{nearest(how, WAYS)}")
    elif prunes != (density is not None) or (density is not None and not 0 < density <= 1):
        needs = "needs a share above 0, up to 1" if prunes else "is not for this way"
        problems.append(f"how={how}: density {needs} (found {density})")
    if rank is not None and not (how.endswith("svd") and rank > 0):
        problems.append(f"how={how}: rank={rank} is for svd, and at least 1")
    if problems:
        raise InputError(
            "adapters cannot be put together like this",
            "; ".join(problems),
            f"--how with one of {', '.join(WAYS)}; --density 0.5 for ties, dare, magnitude_prune",
            "wrong-blend",
        )


def _part(item: str, offline: bool) -> Part:
    """`RUN=WEIGHT` as a run with a LoRA adapter and its weight."""
    name, _, number = item.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight) or not weight:
        raise InputError(
            "a part is RUN=WEIGHT", repr(item), "retone blend RUN=0.7 OTHER=0.3", "wrong-part"
        )
    run = run_or_adapter(name, offline=offline)
    if not (run.adapter / CONFIG).is_file():
        raise InputError(
            "only LoRA adapters can be put together",
            f"{run.name} has no {CONFIG}",
            "name runs that trained lora   (retone runs lists them)",
            "not-plain-lora",
        )
    return Part(run, weight, read_json(run.adapter / CONFIG))


def _check_parts(parts: Sequence[Part], how: str) -> None:
    """InputError that names every reason why adapters cannot be added up."""
    problems = [problem for part in parts for problem in _more_than_lora(part)]
    names = [part.run.name for part in parts]
    problems += [f"{name} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if not parts:
        problems.append("no run is named")
    if len(parts) == 1 and how != "linear":
        problems.append(f"how={how} needs more than one run")
    bases = [read_json(part.run.manifest)["base"]["sha256"][:12] for part in parts]
    if len(set(bases)) > 1:
        told = ", ".join(f"{n} {sha256}" for n, sha256 in zip(names, bases, strict=True))
        problems.append(f"not the same base model: {told}")
    locks = [read_json(part.run.template_lock) for part in parts]
    # A template that prints dates is the same on another day; its prompts are not.
    if all(len({fingerprint(lock[of]) for lock in locks}) > 1 for of in _TEMPLATE):
        problems.append(f"not the same chat template: {', '.join(names)}")
    ranks = {rank for part in parts for rank in _ranks(part.config)}
    if len(ranks) > 1 and how != "cat" and not how.endswith("svd"):
        problems.append(f"how={how} needs one rank, found {sorted(ranks)}: take cat or svd")
    if problems:
        raise InputError(
            "the adapters cannot be put together",
            "; ".join(problems),
            "name runs that trained plain lora on the same base model   (retone runs lists them)",
            "cannot-blend",
        )


def _ranks(config: Mapping[str, Any]) -> set[int]:
    return {config.get("r", 0), *(config.get("rank_pattern") or {}).values()}


def _more_than_lora(part: Part) -> Iterator[str]:
    config = part.config
    if config.get("peft_type") != "LORA":
        yield f"{part.run.name} is {config.get('peft_type')}, not LORA"
        return
    extra = more_than_lora(config)
    if config.get("use_rslora") and (config.get("rank_pattern") or config.get("alpha_pattern")):
        extra.append("use_rslora with ranks or scales of its own for some layers")
    extra += [name for name in _tensors(part) if ".lora_" not in name][:1]
    if extra:
        yield f"{part.run.name} has {', '.join(extra)}, which no sum of updates can hold"


def _tensors(part: Part) -> list[str]:
    with safe_open(part.run.adapter / ADAPTER, framework="pt") as tensors:
        return sorted(tensors.keys())


def _loaded(parts: Sequence[Part], opened: Opened) -> Any:
    """The base's modules with every part's adapter beside them.

    Their own weights stay empty, as no sum of updates reads them. They are float32: peft adds
    adapters up in the type of the base.
    """
    model = hollow_model(opened.base, len(opened.tokenizer)).to_empty(device="cpu")
    for at, part in enumerate(parts):
        config = _plain_config(part)
        if at == 0:
            model = PeftModel.from_pretrained(
                model, part.run.adapter, _label(0), config=config, local_files_only=True
            )
        else:
            model.add_adapter(_label(at), config)
            model.load_adapter(part.run.adapter, _label(at), local_files_only=True)
    return model


def _plain_config(part: Part) -> LoraConfig:
    """The same adapter told in the plainest way.

    Its modules by their whole names, which every part can be united by; and alpha / sqrt(rank) as
    alpha / rank: peft would give the blend of rsLoRA adapters a scale of sqrt(rank) instead of 1.
    """
    config, rank = part.config, part.config["r"]
    names = {name.rpartition(".lora_")[0] for name in _tensors(part)}
    return LoraConfig(
        r=rank,
        lora_alpha=config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1),
        target_modules=sorted(name.removeprefix("base_model.model.") for name in names),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        fan_in_fan_out=config.get("fan_in_fan_out", False),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _kept(
    model: Any, opened: Opened, runs: Sequence[Run], name: str, key: str, facts: dict[str, Any]
) -> Run:
    """The run of a blend, which is the model's adapter `default`."""
    notes = [read_json(run.manifest)["base"]["note"] for run in runs]
    base = replace(opened.base, note=max(notes, key=lambda note: NOT_PROVEN in note))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_tuned(
            model, MethodSection(), base, folder, dtype="float32",
            tokenizer=opened.tokenizer, template=opened.template.text,
        )  # fmt: skip
        if NOT_PROVEN in base.note:
            (folder / BASE_FILE).unlink()
        check_fits(folder, base, len(opened.tokenizer))  # a rank can be too large for its layers
        recipe, known = _recipe(read_json(folder / CONFIG), runs)
        resolved = resolve_untrained(recipe, base, known, f"that of {runs[0].name}")
        opened.tokenizer.chat_template = opened.template.text
        voices = united(real_voices(run) for run in runs)
        return keep(folder, name, base, opened.tokenizer, resolved, key, {"blended": facts}, voices)


def _label(at: int) -> str:
    return f"part{at}"


def _recipe(config: dict[str, Any], runs: Sequence[Run]) -> tuple[Recipe, dict[str, str]]:
    """What is known of a blend as a recipe, and how it is known by field."""
    recipes = [Resolved.from_json(read_json(run.resolved)).recipe for run in runs]
    first, method = recipes[0], method_fields(config)
    longest = max(recipe.evaluate.max_new_tokens or LONGEST_ANSWER for recipe in recipes)
    model = {"adapter": None, "adapter_use": "auto", "dtype": "auto", "attention": "auto"}
    recipe = Recipe(
        model=first.model.model_copy(update=model),
        data=DataSection(train=ELSEWHERE, system=first.data.system),
        method=MethodSection(**method),
        evaluate=first.evaluate.model_copy(update={"max_new_tokens": longest}),
    )
    return recipe, {
        "model.name": "the base of all parts",
        "data.system": f"that of {runs[0].name}, the first part",
        **{f"method.{field}": "as the parts were put together" for field in method},
        "evaluate.max_new_tokens": "the most that a part has",
    }
