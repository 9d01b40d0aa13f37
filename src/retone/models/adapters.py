"""Adapters in peft's standard form: LoRA and its variants, IA3, prefix and prompt tuning."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    initialize_kv_prefix_from_past_key_values,
)
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from retone.config import MethodSection
from retone.errors import InputError
from retone.models.layers import untie

Tensors = dict[str, Tensor]
ADAPTER = "adapter_model.safetensors"
OLDER = "older"  # name of an adapter that stays beside the one that is trained
# Projections of keys, values and of the feed-forward layers' outputs, by family; the last are
# scaled on their input (Liu et al. 2022, arXiv:2205.05638, section 3.3).
IA3_TARGETS = ("k_proj", "v_proj", "qkv_proj")
IA3_FEEDFORWARD = ("down_proj",)
NOT_TEXT = r".*(vision|audio|multi_modal).*"  # parts of multimodal models that text never reaches


def lora(model: Any, method: MethodSection) -> Any:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685); weights of the base are frozen.

    The adapters are kept in float32 whatever the base's type: AdamW's small updates would be lost
    in bfloat16's 8 bits. Embeddings of tokens that the base does not have are trained as well.
    `planning.resolve` fills `method.rank`. Raises InputError when the targets match no module.
    """
    assert method.rank is not None
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha or 2 * method.rank,
        lora_dropout=method.dropout,
        target_modules=method.targets or "all-linear",
        bias=method.bias,
        modules_to_save=method.train_also or None,
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights=True if method.init == "zero" else method.init,
        trainable_token_indices=_added_tokens(model),
        exclude_modules=None if model.config is model.config.get_text_config() else NOT_TEXT,
        task_type="CAUSAL_LM",
    )
    missing = [name for name in method.train_also if not _can_be_trained(model, name)]
    if missing:
        raise InputError(
            "method.train_also names modules that cannot be trained",
            f"{', '.join(missing)}: the model does not have them, or their weights are packed",
            '--set method.train_also=["lm_head"]',
            "no-module",
        )
    named = method.targets if isinstance(method.targets, list) else []
    unknown = [name for name in named if not _has_module(model, name)]
    if unknown:
        raise _no_target(unknown, "the model has no such modules")
    try:
        if untie_targets(model, config) and _added_tokens(model):
            raise InputError(
                "new tokens are learned by what method.targets names already",
                f"{method.targets!r} holds the embeddings or the output head, and the tokenizer "
                "has tokens that the model does not",
                "leave those two out of method.targets",
                "no-target",
            )
        older = isinstance(model, PeftModel)
        if older:
            model.add_adapter("default", config)
            model.base_model.set_adapter([OLDER, "default"])
        else:
            model = get_peft_model(model, config)
    except (ValueError, re.error) as error:
        raise _no_target(method.targets, str(error).splitlines()[0]) from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(f".{OLDER}." not in name)
    return model


def untie_targets(model: Any, config: PeftConfig) -> bool:
    """Untie head and embeddings where an adapter is beside one of them; whether it is.

    What is added to shared weights would change the other as well; PiSSA and OLoRA add at once.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [name for name, module in base.named_modules() if module in ends]
    beside = any(check_target_module_exists(config, name) for name in names)
    if beside:
        untie(base)
    return beside


def _no_target(targets: Any, why: str) -> InputError:
    return InputError(
        "method.targets matches no module of the model",
        f"{targets!r}: {why}",
        '--set method.targets="all-linear"',
        "no-target",
    )


def _added_tokens(model: Any) -> dict[str, list[int]] | None:
    """The embeddings of new tokens, and their rows of a head that has weights of its own."""
    added = getattr(model, "added_tokens", None)
    if not added:
        return None
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    tied = written is None or written.weight is read.weight
    wanted = [read] if tied else [read, written]
    return {
        name.rpartition(".")[2]: added for name, module in model.named_modules() if module in wanted
    }


def ia3(model: Any, method: MethodSection) -> Any:
    """Learned scales of keys, values and feed-forward outputs (IA3, arXiv:2205.05638)."""
    names = [*IA3_TARGETS, *IA3_FEEDFORWARD]
    targets = [name for name in names if _has_module(model, name)]
    if not targets:
        raise InputError(
            "this model has no layers that IA3 knows",
            f"{type(model).__name__} has none of {', '.join(names)}",
            "--set method.kind=lora",
            "no-target",
        )
    forward = [name for name in IA3_FEEDFORWARD if name in targets]
    config = IA3Config(target_modules=targets, feedforward_modules=forward, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def prefix(model: Any, method: MethodSection) -> Any:
    """Learned keys and values before the prompt (Li and Liang 2021, arXiv:2101.00190).

    They begin as those of tokens drawn at random: section 7.4 there found words better than noise.
    """
    config = PrefixTuningConfig(num_virtual_tokens=method.virtual_tokens, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    cache = DynamicCache()  # without the model's config no layer forgets
    with torch.no_grad(), tuned.disable_adapter():
        tuned(input_ids=_drawn_tokens(model, method)[None], past_key_values=cache, use_cache=True)
    initialize_kv_prefix_from_past_key_values(tuned, past_key_values=cache)
    return tuned


def prompt(model: Any, method: MethodSection) -> Any:
    """Learned embeddings before the prompt (Lester et al. 2021, arXiv:2104.08691).

    They begin as embeddings of tokens drawn at random, which that paper found better than noise.
    """
    config = PromptTuningConfig(num_virtual_tokens=method.virtual_tokens, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        drawn = model.get_input_embeddings()(_drawn_tokens(model, method))  # Gemma's are scaled
        for parameter in tuned.prompt_encoder.parameters():
            parameter.copy_(drawn)
    return tuned


def _drawn_tokens(model: Any, method: MethodSection) -> Tensor:
    """int64 [virtual_tokens] on the model's device, each id as likely as another."""
    embeddings = model.get_input_embeddings().weight
    return torch.randint(len(embeddings), (method.virtual_tokens,)).to(embeddings.device)


def beside(model: Any, adapter: Path, name: str = "default") -> Any:
    """A base with a saved adapter, which may be added to its weights."""
    untie_targets(model, PeftConfig.from_pretrained(adapter, local_files_only=True))
    return PeftModel.from_pretrained(model, adapter, adapter_name=name, local_files_only=True)


def add_to_weights(model: Any, adapter: Path) -> Any:
    """A base with a saved adapter added to its weights."""
    return beside(model, adapter).merge_and_unload()


def _has_module(model: Any, name: str) -> bool:
    return any(path.endswith(f".{name}") or path == name for path, _ in model.named_modules())


def _can_be_trained(model: Any, name: str) -> bool:
    weights = [
        parameter
        for path, module in model.named_modules()
        if path.endswith(f".{name}") or path == name
        for parameter in module.parameters()
    ]
    return bool(weights) and all(parameter.is_floating_point() for parameter in weights)


# Fields of peft's LoraConfig that ask for more than A and B beside linear layers.
MORE_THAN_LORA = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices",
                  "target_parameters", "layer_replication")  # fmt: skip


def more_than_lora(config: Mapping[str, Any]) -> list[str]:
    """What an adapter is by its config besides A and B of linear layers; empty for plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":  # peft's own type is a string as well
        return [str(getattr(kind, "value", kind))]
    bias = ["bias"] if config.get("bias", "none") != "none" else []
    return [name for name in MORE_THAN_LORA if config.get(name)] + bias


# ------------------------------------------------------------------------- several as one adapter


@dataclass(frozen=True)
class Part:
    """One plain LoRA adapter as an addend: `scale * B A` for each module.

    Attributes:
        tensors: "....lora_A.weight" -> [rank, in], "....lora_B.weight" -> [out, rank].
        scale: what the product is multiplied by; negative to take it away.
        rank: of every pair.
    """

    tensors: Tensors
    scale: float
    rank: int


def read_part(folder: Path) -> Part:
    """A saved adapter as an addend; InputError where it is more than plain LoRA."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    extra = more_than_lora(config)
    extra += [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if extra:
        raise InputError(
            "only a plain LoRA adapter can be gone on from",
            f"{folder}: with {', '.join(extra)}",
            "merge it into a model folder first, and name that folder with --model",
            "not-plain-lora",
        )
    rank = int(config["r"])
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    return Part(_plain(load_file(folder / ADAPTER)), config["lora_alpha"] / root, rank)


def initial_part(model: Any, method: MethodSection) -> list[Part]:
    """What has to be taken away from an adapter whose start moved the base's weights."""
    if method.init == "zero":
        return []
    now = own_part(model)
    tensors = {name: tensor.clone() for name, tensor in now.tensors.items()}
    return [Part(tensors, -now.scale, now.rank)]


def own_part(model: Any) -> Part:
    """The trained adapter of a model as an addend."""
    config = model.peft_config["default"]
    root = math.sqrt(config.r) if config.use_rslora else config.r
    tensors = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    return Part(
        _plain({name: tensor.detach().cpu() for name, tensor in tensors.items()}),
        config.lora_alpha / root,
        config.r,
    )


def _plain(tensors: Tensors) -> Tensors:
    """The tensors, all of them A or B of a linear layer; else InputError."""
    others = [name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if others:
        raise InputError(
            "only LoRA on linear layers can be added up",
            f"{others[0]} is something else",
            "leave method.init and model.adapter out, or embeddings out of method.targets",
            "not-plain-lora",
        )
    return tensors


def as_one(parts: Sequence[Part]) -> tuple[Tensors, dict[str, Any]]:
    """The sum of several adapters as one: tensors, and the fields of its config that they decide.

    The ranks add up: [s1 B1 | s2 B2] [A1; A2] = s1 B1 A1 + s2 B2 A2, exactly.
    """
    names = sorted({name.rpartition(".lora_")[0] for part in parts for name in part.tensors})
    made: Tensors = {}
    for name in names:
        rows, columns = [], []
        known = next(part.tensors for part in parts if f"{name}.lora_A.weight" in part.tensors)
        width = known[f"{name}.lora_A.weight"].shape[1]
        height = known[f"{name}.lora_B.weight"].shape[0]
        for part in parts:
            a = part.tensors.get(f"{name}.lora_A.weight", torch.zeros(part.rank, width))
            b = part.tensors.get(f"{name}.lora_B.weight", torch.zeros(height, part.rank))
            rows.append(a.float())
            columns.append(part.scale * b.float())
        made[f"{name}.lora_A.weight"] = torch.cat(rows, dim=0).contiguous()
        made[f"{name}.lora_B.weight"] = torch.cat(columns, dim=1).contiguous()
    rank = sum(part.rank for part in parts)
    targets = [name.removeprefix("base_model.model.") for name in names]
    return made, {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        "use_rslora": False,
        "init_lora_weights": True,
    }
