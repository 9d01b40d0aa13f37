"""Tokenizer and base model from a located folder."""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from retone.errors import MachineError
from retone.models.locate import LocatedModel
from retone.planning import ModelFacts

CONTEXT = 2048  # tokens, of a model that tells none
# peft 0.21 reads an attribute that transformers 5.23 renamed; nothing that a user could mend.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
# So it is meant: prompts behind learned embeddings are never padded.
warnings.filterwarnings("ignore", message="Position ids are not supported for parameter efficient")
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load_tokenizer(base: LocatedModel) -> Any:
    """The model's own tokenizer, with its chat template."""
    return AutoTokenizer.from_pretrained(base.path, local_files_only=True)


def model_facts(base: LocatedModel) -> ModelFacts:
    """What `planning.resolve` needs to know of a base model; nothing of its weights is read."""
    config = AutoConfig.from_pretrained(base.path, local_files_only=True)
    return ModelFacts(
        parameters=weights_parameters(base.path),
        context=base.context or CONTEXT,
        model_type=config.model_type,
        layers=config.get_text_config().num_hidden_layers,
        fuses=_fuses(config),
        vocabulary=config.get_text_config().vocab_size,
        packing=packing_of(config),
    )


def packing_of(config: Any) -> str:
    """How stored weights are packed, by a transformers config: nf4, int8, another method, or ""."""
    told = getattr(config, "quantization_config", None) or {}
    told = told if isinstance(told, dict) else told.to_dict()
    if told.get("load_in_8bit"):
        return "int8"
    if told.get("load_in_4bit"):
        return str(told.get("bnb_4bit_quant_type", "fp4"))
    return str(told.get("quant_method", "unknown")) if told else ""


def _fuses(config: Any) -> bool:
    """Whether the architecture computes attention by torch's fused kernel: Gemma 2, which caps its
    scores, does not."""
    return bool(
        getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "_supports_sdpa", True)
    )


def weights_parameters(folder: Path) -> int:
    """Number of stored parameters, read from the safetensors headers alone.

    bitsandbytes stores two 4-bit weights in a byte.
    """
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - a safetensors handle is no dict
                stored = tensors.get_slice(key)
                packed = stored.get_dtype() == "U8" and key.endswith(".weight")
                total += math.prod(stored.get_shape()) * (2 if packed else 1)
    return total


def load_base(
    folder: Path,
    *,
    dtype: str,
    attention: str = "auto",
    device: str,
    quantization: str = "none",
    tokens: int = 0,
) -> Any:
    """A model with its weights in one type, in evaluation mode.

    In float16 its norms stay in float32: their sums of squares leave float16's range.

    Args:
        folder: a verified one.
        dtype: bfloat16, float16 or float32.
        attention: eager or sdpa; auto: sdpa where the architecture has it.
        device: cpu, cuda or mps.
        quantization: none, nf4 or int8, of the frozen linear layers.
        tokens: entries of the tokenizer; a model with fewer embeddings gets further ones.

    Raises:
        MachineError: bitsandbytes is asked for and missing.
    """
    if attention == "auto":
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        attention = "sdpa" if _fuses(config) else "eager"
    kind: torch.dtype = getattr(torch, dtype)
    packed = (
        {}
        if quantization == "none"
        else {
            "quantization_config": _bitsandbytes_config(quantization, kind),
            "device_map": {"": device},
        }
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=kind,
        attn_implementation=attention,
        local_files_only=True,
        use_safetensors=True,
        **packed,
    )
    add_embeddings(model, tokens)
    if dtype == "float16":
        for module in model.modules():
            if type(module).__name__.endswith("Norm"):
                module.float().register_forward_hook(_in_half)
    for module in model.modules():
        # Else a CPU with AVX512-bf16 packs these weights anew when it first evaluates, rounded.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return (model if packed else model.to(device)).eval()


def _in_half(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.half()


def add_embeddings(model: Any, tokens: int) -> None:
    """Give tokens that were added to a tokenizer embeddings: the mean of all others.

    Which they are is noted as `model.added_tokens`, so that methods can train them.
    """
    known = model.get_input_embeddings().num_embeddings
    model.added_tokens = list(range(known, tokens))
    if not model.added_tokens:
        return
    model.resize_token_embeddings(tokens, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight[known:] = module.weight[:known].float().mean(0).to(module.weight.dtype)


def require_bitsandbytes(wanted: str) -> None:
    """MachineError where bitsandbytes is needed for `wanted` and is not installed."""
    if find_spec("bitsandbytes") is None:
        raise MachineError(
            f"{wanted} needs the package bitsandbytes",
            "it is not installed",
            "pip install 'retone[quantization]'",
            "no-bitsandbytes",
        )


def _bitsandbytes_config(quantization: str, dtype: torch.dtype) -> Any:
    require_bitsandbytes(f"model.quantization={quantization}")
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
