"""What the fields of Axolotl's and LlamaFactory's training YAML are called here: a table per tool.

Names, values and defaults: docs.axolotl.ai (config reference, dataset formats) and its schemas;
LlamaFactory's examples, data/README.md and hparams, and transformers' TrainingArguments under it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class NoCounterpart(Exception):
    """A value that has no counterpart; the text says why, or what to do instead."""


Convert = Callable[[Any], Any]  # None: nothing to write. Raises ValueError, NoCounterpart


@dataclass(frozen=True)
class Tool:
    """How a tool names things.

    Attributes:
        name: as people write it.
        model, data: fields without which there is nothing to train.
        micro_batch, epochs: fields that are read together with others.
        fields: field -> (retone field, conversion); the first of two that mean the same wins.
        fixed: field -> (the values under which retone does the same, what to do about others).
        defaults: what the tool assumes where a field is left out, and retone does not.
    """

    name: str
    model: str
    data: str
    micro_batch: str
    epochs: str
    fields: Mapping[str, tuple[str, Convert]]
    fixed: Mapping[str, tuple[tuple[Any, ...], str]]
    defaults: Mapping[str, Any]

    @property
    def names(self) -> set[str]:
        """Every field that the tables know."""
        together = {self.data, self.micro_batch, self.epochs}
        return together | self.fields.keys() | self.fixed.keys()


def number(value: Any) -> float:
    """A finite number; YAML readers leave some, such as 1e-4, as text."""
    try:
        found = value if isinstance(value, int) else float(value)
        wrong = isinstance(value, bool) or not math.isfinite(found)
    except (TypeError, ValueError, OverflowError):
        wrong = True
    if wrong:
        raise ValueError("a number is expected")
    return found


def whole(value: Any) -> int:
    """A whole number."""
    found = number(value)
    if found != int(found):
        raise ValueError("a whole number is expected")
    return int(found)


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text is expected")
    # Halves of a character outside the basic plane, as JSON escapes them, become one again.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def names(value: Any) -> list[str]:
    """A list of names, or names with commas between them."""
    found = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise ValueError("a list of names is expected")
    return [text(name) for name in found]


def _when(known: Mapping[Any, Any], otherwise: str) -> Convert:
    """A conversion by table; any other value has no counterpart, for the reason given."""

    def convert(value: Any) -> Any:
        if isinstance(value, (str, bool)) and value in known:
            return known[value]
        raise NoCounterpart(otherwise)

    return convert


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false is expected")
    return value


def _steps(value: Any) -> int:
    if 0 < number(value) < 1:
        raise NoCounterpart("a share of the run: give a number of steps")
    return whole(value)


def _held_out(value: Any) -> float:
    share = number(value)
    if share == 0:
        raise NoCounterpart(
            "rows are always held out to judge by; data.eval_fraction says how many"
        )
    if share >= 1:
        raise NoCounterpart("a number of rows: give their share as data.eval_fraction")
    return share


def _norm(value: Any) -> float:
    if number(value) == 0:
        raise NoCounterpart("clipping cannot be turned off; give a large train.max_grad_norm")
    return number(value)


def _targets(value: Any) -> str | list[str]:
    if isinstance(value, str):
        return {"all": "all-linear"}.get(value, value)
    return names(value)


def _target_list(value: Any) -> str | list[str]:
    found = names(value)
    return "all-linear" if found == ["all"] else found


def _bits(value: Any) -> str:
    found = {4: "nf4", 8: "int8"}.get(whole(value))
    if found is None:
        raise NoCounterpart("bases are quantized to 4 or 8 bits")
    return found


def _adapter(value: Any) -> str:
    if "," in text(value):
        raise NoCounterpart("training goes on from one adapter: merge the others first")
    return text(value)


def _jinja(value: Any) -> str:
    if "{" in text(value):
        raise NoCounterpart("save it as a file, and name the file in model.template")
    return text(value)


STYLES = ("chatml", "zephyr", "llama2", "llama3", "phi3", "gemma", "alpaca")
_TEMPLATE = _when(
    {style: style for style in STYLES}
    | {"phi_3": "phi3", "phi": "phi3", "tokenizer_default": None, "jinja": None},
    "left out: the model's own chat template; a style or a Jinja file as model.template is another",
)
_SCHEDULE = _when(
    {"linear": "linear", "cosine": "cosine", "constant": "constant"}
    | {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"},
    "there are linear (the default), cosine, constant and wsd",
)
_BF16 = _when({True: "bfloat16", False: None, "full": "bfloat16", "auto": None}, "true or false")
_FP16 = _when({True: "float16", False: None, "full": "float16"}, "true or false")
_OPTIMIZER = _when(
    dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw")
    | dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit"), "adamw_8bit")
    | {"paged_adamw_8bit": "paged_adamw_8bit", "adafactor": "adafactor", "muon": "muon"}
    | {"lion": "lion", "lion_32bit": "lion"},
    "there are adamw (the default), adamw_8bit, paged_adamw_8bit, adafactor, lion and muon",
)
_FOUR_BITS = _when({True: "nf4", False: None}, "true or false")
_EIGHT_BITS = _when({True: "int8", False: None}, "true or false")
_RECOMPUTE = _when(
    {True: True, False: None}, "true or false; activations are never moved to another memory"
)
_KIND = _when(
    {"lora": "lora", "qlora": "lora", "full": "full", "freeze": "last_layers"},
    "there are lora, full and last_layers, and the others of method.kind",
)
_EVERYTHING = _when({True: "everything", False: None}, "true or false")
_SDPA = "sdpa, the default for long rows and on GPUs, is fused attention too"
_ATTENTION = _when({"eager": "eager", "sdpa": "sdpa", "auto": None, "disabled": "eager"}, _SDPA)

OBJECTIVE = "only supervised training; preferences and rewards are not trained on"
_PACKING = "not needed: micro-batches are cut by tokens from rows of like length"
_MEMORY = "no counterpart; lower train.micro_batch_tokens where memory is short"
_DEVICE = "trains on one device"
_FAST = "the fast path is chosen for the machine (train.fast)"
_TRACKING = "no trackers: the run's metrics.jsonl has every step"
_RUNS = "a run lies in runs/NAME; --name chooses the name"
_CACHE = "not needed: nothing is prepared beforehand"
_TOKENS = "the model's own tokens and embeddings are used as they are"
_NO_CODE = "models that bring their own code are not loaded"

_SHARED_FIELDS: dict[str, tuple[str, Convert]] = {
    "learning_rate": ("train.learning_rate", number),
    "weight_decay": ("train.weight_decay", number),
    "max_grad_norm": ("train.max_grad_norm", _norm),
    "seed": ("train.seed", whole),
    "logging_steps": ("train.log_every", _steps),
    "eval_steps": ("train.evaluate_every", _steps),
    "save_steps": ("train.save_every", _steps),
    "lora_alpha": ("method.alpha", number),
    "lora_dropout": ("method.dropout", number),
    "loraplus_lr_ratio": ("method.plus_ratio", number),
    "bf16": ("model.dtype", _BF16),
    "adam_beta1": ("train.beta1", number),
    "adam_beta2": ("train.beta2", number),
    "gradient_checkpointing": ("train.gradient_checkpointing", _RECOMPUTE),
    "neftune_noise_alpha": ("train.neftune_alpha", number),
    "label_smoothing_factor": ("objective.label_smoothing", number),
}
_SHARED_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "adam_epsilon": ((1e-8, "1e-8"), "AdamW's epsilon is 1e-8"),
    "ddp_timeout": ((), _DEVICE),
    "deepspeed": ((), _DEVICE),
    "eval_strategy": (("steps",), "train.evaluate_every; left out: twice an epoch"),
    "fsdp": ((), _DEVICE),
    "fsdp_config": ((), _DEVICE),
    "group_by_length": ((True,), ""),
    "hub_model_id": ((), "no upload; the adapter in the run is a standard peft folder"),
    "output_dir": ((), _RUNS),
    "report_to": (("none",), _TRACKING),
    "resume_from_checkpoint": ((), "the same recipe again resumes its run"),
    "run_name": ((), _RUNS),
    "save_strategy": (("steps", "epoch"), "train.save_every; left out: once an epoch"),
    "save_total_limit": ((), "checkpoints of a run are kept or deleted by retone"),
    "torch_compile": ((), _FAST),
    "trust_remote_code": ((), _NO_CODE),
}

AXOLOTL = Tool(
    name="Axolotl",
    model="base_model",
    data="datasets",
    micro_batch="micro_batch_size",
    epochs="num_epochs",
    fields={
        **_SHARED_FIELDS,
        "base_model": ("model.name", text),
        "revision_of_model": ("model.revision", text),
        "chat_template": ("model.template", _TEMPLATE),
        "chat_template_jinja": ("model.template", _jinja),
        "attn_implementation": ("model.attention", _ATTENTION),
        "sdp_attention": ("model.attention", _when({True: "sdpa", False: None}, _SDPA)),
        "eager_attention": ("model.attention", _when({True: "eager", False: None}, _SDPA)),
        "bfloat16": ("model.dtype", _BF16),
        "float32": ("model.dtype", _when({True: "float32", False: None}, "true or false")),
        "default_system_message": ("data.system", text),
        "val_set_size": ("data.eval_fraction", _held_out),
        "sequence_len": ("data.max_length", whole),
        "train_on_inputs": ("data.train_on", _EVERYTHING),
        "dataset_exact_deduplication": (
            "data.deduplicate", _when({True: "exact", False: "none"}, "true or false")
        ),
        "lora_r": ("method.rank", whole),
        "lora_target_linear": ("method.targets", _when({True: "all-linear", False: None}, "")),
        "lora_target_modules": ("method.targets", _targets),
        "lr_scheduler": ("train.schedule", _SCHEDULE),
        "optimizer": ("train.optimizer", _OPTIMIZER),
        "adapter": ("method.kind", _KIND),
        "load_in_4bit": ("model.quantization", _FOUR_BITS),
        "load_in_8bit": ("model.quantization", _EIGHT_BITS),
        "fp16": ("model.dtype", _FP16),
        "float16": ("model.dtype", _FP16),
        "lora_modules_to_save": ("method.train_also", names),
        "lora_model_dir": ("model.adapter", text),
        "peft_use_dora": ("method.dora", flag),
        "peft_use_rslora": ("method.rslora", flag),
    },
    fixed={
        **_SHARED_FIXED,
        "strict": ((), ""),
        "model_type": (("AutoModelForCausalLM",), "found from the model"),
        "tokenizer_type": (("AutoTokenizer",), "found from the model"),
        "rl": ((), OBJECTIVE),
        "reward_model": ((), OBJECTIVE),
        "sample_packing": ((), _PACKING),
        "eval_sample_packing": ((), _PACKING),
        "pad_to_sequence_len": ((), _PACKING),
        "batch_flattening": ((), _PACKING),
        "flash_attention": ((), _SDPA),
        "xformers_attention": ((), _SDPA),
        "lora_mlp_kernel": ((), _FAST),
        "lora_qkv_kernel": ((), _FAST),
        "lora_o_kernel": ((), _FAST),
        "tf32": ((), _FAST),
        "plugins": ((), "no plugins"),
        "dataset_prepared_path": ((), _CACHE),
        "dataset_processes": ((), _CACHE),
        "evals_per_epoch": ((2,), "train.evaluate_every in steps; left out: twice an epoch"),
        "saves_per_epoch": ((1,), "train.save_every in steps; left out: once an epoch"),
        "eval_batch_size": ((), "losses are measured with the training's micro-batches"),
        "early_stopping_patience": ((), "no early stop, but the best weights are kept"),
        "gradient_checkpointing_kwargs": ((), _MEMORY),
        "shuffle_merged_datasets": ((True,), "rows are always shuffled"),
        "special_tokens": ((), _TOKENS),
        "tokens": ((), _TOKENS),
        "use_tensorboard": ((), _TRACKING),
        "wandb_project": ((), _TRACKING),
        "wandb_entity": ((), _TRACKING),
        "wandb_name": ((), _TRACKING),
        "wandb_watch": ((), _TRACKING),
        "wandb_log_model": ((), _TRACKING),
    },
    defaults={
        "sequence_len": 512, "micro_batch_size": 1, "gradient_accumulation_steps": 1,
        "num_epochs": 1, "lr_scheduler": "cosine",
    },
)  # fmt: skip

LLAMAFACTORY = Tool(
    name="LlamaFactory",
    model="model_name_or_path",
    data="dataset",
    micro_batch="per_device_train_batch_size",
    epochs="num_train_epochs",
    fields={
        **_SHARED_FIELDS,
        "model_name_or_path": ("model.name", text),
        "model_revision": ("model.revision", text),
        "template": ("model.template", _TEMPLATE),
        "flash_attn": ("model.attention", _ATTENTION),
        "pure_bf16": ("model.dtype", _BF16),
        "default_system": ("data.system", text),
        "val_size": ("data.eval_fraction", _held_out),
        "cutoff_len": ("data.max_length", whole),
        "train_on_prompt": ("data.train_on", _EVERYTHING),
        "mask_history": ("data.train_on", _when({True: "last", False: None}, "true or false")),
        "lora_rank": ("method.rank", whole),
        "lora_target": ("method.targets", _target_list),
        "lr_scheduler_type": ("train.schedule", _SCHEDULE),
        "optim": ("train.optimizer", _OPTIMIZER),
        "finetuning_type": ("method.kind", _KIND),
        "freeze_trainable_layers": ("method.layers", whole),
        "quantization_bit": ("model.quantization", _bits),
        "fp16": ("model.dtype", _FP16),
        "additional_target": ("method.train_also", names),
        "adapter_name_or_path": ("model.adapter", _adapter),
        "use_dora": ("method.dora", flag),
        "use_rslora": ("method.rslora", flag),
        "pissa_init": ("method.init", _when({True: "pissa", False: None}, "true or false")),
    },
    fixed={
        **_SHARED_FIXED,
        "stage": (("sft", "pt"), OBJECTIVE),
        "do_train": ((True,), ""),
        "do_eval": ((True,), ""),
        "upcast_layernorm": ((), "layers keep the type of model.dtype"),
        "pref_loss": ((), OBJECTIVE),
        "pref_beta": ((), OBJECTIVE),
        "packing": ((), _PACKING),
        "neat_packing": ((), _PACKING),
        "enable_liger_kernel": ((), _FAST),
        "use_unsloth": ((), _FAST),
        "use_galore": ((), "gradients are not projected; train.optimizer=adafactor saves memory"),
        "quantization_method": (("bitsandbytes", "bnb"), "bases are quantized by bitsandbytes"),
        "double_quantization": ((True,), "nf4 always quantizes its constants too"),
        "disable_gradient_checkpointing": ((True,), ""),
        "overwrite_cache": ((True,), ""),
        "overwrite_output_dir": ((True,), ""),
        "preprocessing_num_workers": ((), _CACHE),
        "dataloader_num_workers": ((), _CACHE),
        "tokenized_path": ((), _CACHE),
        "plot_loss": ((True,), ""),
        "save_only_model": ((), "checkpoints are whole: a run can be resumed"),
        "per_device_eval_batch_size": ((), "losses are measured with the training's micro-batches"),
        "predict_with_generate": ((), "retone evaluate answers the test rows"),
        "resize_vocab": ((), _TOKENS),
        "mix_strategy": (("concat", "interleave_under"), "give the sources weights instead"),
        "media_dir": ((), "text only"),
    },
    defaults={
        "cutoff_len": 2048, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "learning_rate": 5e-5, "num_train_epochs": 3.0, "warmup_steps": 0,
    },
)  # fmt: skip

TOOLS = (AXOLOTL, LLAMAFACTORY)
