"""Adapters that another tool saved with peft: which can be used, and whether they fit a base."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModelForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM

from retone.errors import InputError
from retone.models.adapters import ADAPTER
from retone.models.loading import add_embeddings
from retone.models.locate import LocatedModel

CONFIG = "adapter_config.json"
PICKLE = "adapter_model.bin"
KINDS = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
SHOWN = 3  # tensors that a message names
# What a LoRA may have been begun as: these left the base's weights alone.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# Fields of a LoRA config that may differ from peft's defaults: what they do is done here as well.
_LORA_FIELDS = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "use_rslora", "use_dora", "bias", "modules_to_save", "trainable_token_indices",
    "fan_in_fan_out", "init_lora_weights", "eva_config", "ensure_weight_tying",
)  # fmt: skip
_MISMATCH = re.compile(
    r"size mismatch for (\S+):.*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)", re.S
)
# A hub model that was loaded by its path in a cache: its id and commit.
_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\](\w+)")
_MERGE = "merge it with the tool that made it, and name the folder of the whole model as a model"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds what peft saves, be it complete or not."""
    # Not `Path.is_file`: it fails on a name that is too long to be one.
    return any(os.path.isfile(folder / name) for name in (CONFIG, ADAPTER, PICKLE))


def read_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter, checked to be one that answers here as it does in its own tool.

    Raises InputError that names everything that stands in the way: pickle weights, a type or a
    field that is not understood, a start that moved the base's weights.
    """
    problems = list(_weights_problems(folder))
    config: dict[str, Any] = {}
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        problems += _config_problems(config)
    except (OSError, ValueError, AttributeError) as error:
        problems.append((f"{CONFIG} cannot be read ({error})", "save the adapter again with peft"))
    if problems:
        raise InputError(
            "the adapter cannot be used",
            f"{folder}: {'; '.join(found for found, _ in problems)}",
            "; ".join(dict.fromkeys(remedy for _, remedy in problems)),
            "unusable-adapter",
        )
    return config


def base_named(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The base that a config names, as `locate` takes it (empty where it names none), and its
    revision."""
    named = config.get("base_model_name_or_path") or ""
    cached = _IN_CACHE.search(named)
    if cached:
        return f"{cached[1]}/{cached[2]}", cached[3]
    return named, None if Path(named).is_dir() else config.get("revision")


def method_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe's [method] that a config tells."""
    kind = KINDS[config["peft_type"]]
    if kind in ("prefix", "prompt"):
        return {"kind": kind, "virtual_tokens": config["num_virtual_tokens"]}
    if kind == "ia3":
        return {"kind": kind}
    fields = {
        "kind": kind,
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config.get("lora_dropout"),
        "targets": config.get("target_modules"),
        "bias": config.get("bias"),
        "train_also": config.get("modules_to_save"),
        "rslora": config.get("use_rslora"),
        "dora": config.get("use_dora"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _weights_problems(folder: Path) -> Iterator[tuple[str, str]]:
    """Why there are no weights to read, with what to do."""
    if (folder / ADAPTER).is_file():
        return
    found = f"{ADAPTER} is missing"
    if (folder / PICKLE).is_file():
        found += f" ({PICKLE} is a pickle file, which can run code when it is opened)"
    yield found, "save it again: model.save_pretrained(FOLDER, safe_serialization=True)"


def _config_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What of a config is not understood, with what to do."""
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind not in KINDS:
        yield f"its peft type is {kind}, and only {', '.join(KINDS)} are known", _MERGE
    if task not in (None, "CAUSAL_LM"):
        yield f"its task is {task}, not CAUSAL_LM", "take an adapter of a language model"
    if kind != "LORA":
        return
    usual = asdict(LoraConfig())
    for name, value in config.items():
        if value and name not in _LORA_FIELDS and value != usual.get(name):
            yield f"its config says {name}, which is not known", _MERGE
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        yield (
            f"it was begun as {start}, which moved the base's weights",
            "save it as plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion)",
        )


def check_fits(folder: Path, base: LocatedModel, tokens: int) -> None:
    """InputError with names and shapes where an adapter's tensors do not fit a base model.

    The base is built without weights (on torch's device `meta`), and peft loads the adapter into
    that.

    Args:
        folder: of an adapter that `read_config` takes.
        base: what it shall be loaded on.
        tokens: entries of the tokenizer, as in `load_base`.
    """
    try:
        problems = _misfits(folder, base, tokens)
    except KeyError as error:  # what peft says of a whole module that is not in the file
        problems = [f"{_module(str(error.args[0]))} is missing in the adapter"]
    except (RuntimeError, ValueError) as error:
        text = str(error)
        problems = [
            f"{_module(name)} is [{theirs}] in the adapter and [{ours}] in the model"
            for name, theirs, ours in _MISMATCH.findall(text)
        ] or text.splitlines()[:1]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(
            "the adapter does not fit the base model",
            f"{folder} on {base.name} ({base.origin}): {'; '.join(problems[:SHOWN])}{more}",
            f"retone adopt {folder} --model MODEL   (the one that it was trained on)",
            "adapter-misfit",
        )


def hollow_model(base: LocatedModel, tokens: int) -> Any:
    """A base in float32 without its weights (on torch's `meta`); `tokens` as in `load_base`."""
    settings = AutoConfig.from_pretrained(base.path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    add_embeddings(model, tokens)
    return model


def _misfits(folder: Path, base: LocatedModel, tokens: int) -> list[str]:
    """Tensors that only one of adapter and model has; peft raises for those of other shapes."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    if config.is_prompt_learning:  # else peft takes shapes from the adapter and not from the base
        config.num_layers = config.token_dim = config.num_attention_heads = None
    model = hollow_model(base, tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the misfits themselves are what is reported
        tuned = PeftModelForCausalLM(model, config, low_cpu_mem_usage=True)
        found = tuned.load_adapter(
            str(folder), "default", torch_device="cpu", low_cpu_mem_usage=True
        )
    unknown = [name for name in found.unexpected_keys if name != "prompt_embeddings"]
    return [f"{_module(name)} is missing in the adapter" for name in found.missing_keys] + [
        f"{_module(name)} is not in the model" for name in unknown
    ]


def _module(name: str) -> str:
    """The name of a tensor without what peft puts around it."""
    if name == "weight":  # of a learned prompt's embedding
        return "prompt_embeddings"
    return name.removeprefix("base_model.model.").replace(".default", "")
