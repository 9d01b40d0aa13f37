"""Base model and tokenizer from a located folder; a tuned model from a run's adapter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from retone.errors import InputError
from retone.models.locate import LocatedModel
from retone.run_dir import read_json, write_json

BASE_FILE = "base_model.json"  # travels inside every adapter folder

# peft 0.21 reads an attribute that transformers 5.23 renamed; nothing that a user could mend.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load_tokenizer(base: LocatedModel) -> Any:
    """The model's own tokenizer, with its chat template."""
    return AutoTokenizer.from_pretrained(base.path, local_files_only=True)


def load_base(base: LocatedModel, *, dtype: str, attention: str, device: str) -> Any:
    """The base model with frozen-type weights, in evaluation mode.

    Args:
        base: a verified folder.
        dtype: bfloat16 or float32.
        attention: eager or sdpa.
        device: cpu, cuda or mps.
    """
    model = AutoModelForCausalLM.from_pretrained(
        base.path,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        local_files_only=True,
        use_safetensors=True,
    )
    return model.to(device).eval()


def save_adapter(
    model: Any, base: LocatedModel, folder: Path, *, tokenizer: Any, template: str
) -> None:
    """Write a standard peft folder that also names its base and the base's sha256.

    The tokenizer goes with it, carrying the chat template that was trained with: an adapter asked
    through another template answers as if it had learned little.
    """
    config = model.peft_config[model.active_adapter]
    # A path of this machine would be of no use elsewhere.
    config.base_model_name_or_path = base.repo or base.name
    # "auto" would ask the hub whether the vocabulary was changed.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    own = tokenizer.chat_template
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = own
    write_json(
        folder / BASE_FILE,
        {
            "name": base.name,
            "repo": base.repo,
            "revision": base.revision,
            "origin": base.origin,
            "sha256": base.sha256,
        },
    )


def check_base(adapter: Path, base: LocatedModel) -> None:
    """Refuse an adapter that was trained on other weights (InputError)."""
    file = adapter / BASE_FILE
    if not file.is_file():
        return  # another tool's adapter says nothing of its base's weights
    trained_on = read_json(file)
    if trained_on["sha256"] != base.sha256:
        raise InputError(
            "the adapter was trained on another base model",
            f"{adapter}: trained on {trained_on['name']} ({trained_on['origin']}, sha256 "
            f"{trained_on['sha256'][:12]}), this one is {base.name} ({base.origin}, sha256 "
            f"{base.sha256[:12]})",
            "load the base it was trained on, or tune this one: retone run RECIPE --fresh",
            "other-base",
        )


def add_adapter(model: Any, adapter: Path, base: LocatedModel) -> Any:
    """The base with a saved adapter on it, as plain peft loads it; refuses another base."""
    check_base(adapter, base)
    return PeftModel.from_pretrained(model, adapter, local_files_only=True).eval()
