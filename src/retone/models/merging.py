"""An adapter added to the weights of its base, and a check that this is what was written."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from retone.errors import InputError
from retone.models.adapters import Part, add_to_weights, read_part
from retone.models.loading import load_base, packing_of
from retone.models.methods import METHODS
from retone.run_dir import Run

# The head's weights in a merged model -> where a base has them that ties them to the embeddings.
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def merged_model(base: Path, adapter: Path, *, tokens: int) -> Any:
    """A base with its adapter added to the weights, in float32: rounded once, when it is saved.

    Args:
        base: a folder of unpacked weights.
        adapter: what peft saved.
        tokens: entries of the tokenizer that was trained with.

    Raises InputError: the weights of the base are packed.
    """
    require_unpacked(base)
    model = load_base(base, dtype="float32", device="cpu", tokens=tokens)
    return add_to_weights(model, adapter)


def require_unpacked(base: Path) -> None:
    """InputError for a folder whose weights are packed: what is added to them is rounded away."""
    packing = packing_of(AutoConfig.from_pretrained(base, local_files_only=True))
    if packing:
        raise InputError(
            "an adapter cannot be merged into quantised weights",
            f"{base.name}: {packing}; every sum would be rounded to a few bits again",
            "--base ORG/NAME   (the original model in 16 bit; how far it drifts is measured)",
            "quantised-base",
        )


def require_mergeable(run: Run, kind: str) -> None:
    """InputError where what a run trained is no change of the weights."""
    if not METHODS[kind].merges and METHODS[kind].saved_as != "model":
        remedy = f"retone export {run.name} --to adapter"
        if METHODS[kind].saved_as == "bottleneck":
            remedy = f"its folder is {run.tuned}, and retone alone loads it"
        raise InputError(
            f"what {kind} trains cannot be merged",
            f"{run.name}: it is no change of the base's weights",
            remedy,
            "not-mergeable",
        )


def largest_error(written: Path, base: Path, adapter: Path | None) -> tuple[float, str] | None:
    """How far a folder is from base + adapter, computed anew: the worst matrix and its name.

    The relative error ||W' - W|| / ||W|| in the Frobenius norm, W being base + s B A in the type
    that W' is stored in: rounding is no error, a matrix that was left out is one. Without an
    adapter W is the base's. None where it cannot be told: more than plain LoRA, or other names than
    the base's.
    """
    try:
        part = read_part(adapter) if adapter else None
    except InputError:
        return None
    original = _readers(base)
    worst = (0.0, "")
    known = 0
    for name, read in _readers(written).items():
        stored = name if name in original else TIED.get(name, name)
        if stored not in original:
            continue
        known += 1
        tensor, expected = read(name), _expected(name, original[stored](stored).float(), part)
        if expected.shape != tensor.shape:
            return math.inf, name
        expected = expected.to(tensor.dtype).float()
        away = float((tensor.float() - expected).norm() / expected.norm().clamp_min(1e-12))
        if not math.isfinite(away):
            return math.inf, name
        worst = max(worst, (away, name))
    return worst if known else None


def _expected(name: str, weight: Tensor, part: Part | None) -> Tensor:
    if part is None:
        return weight
    key = f"base_model.model.{name.removesuffix('.weight')}"
    a, b = (part.tensors.get(f"{key}.lora_{side}.weight") for side in "AB")
    return weight if a is None or b is None else weight + part.scale * (b.float() @ a.float())


def _readers(folder: Path) -> dict[str, Callable[[str], Tensor]]:
    """Name of a stored tensor -> what reads it; one at a time is in memory."""
    found = sorted(folder.glob("*.safetensors"))
    files: list[Any] = [safe_open(file, framework="pt") for file in found]
    return {name: file.get_tensor for file in files for name in file.keys()}  # noqa: SIM118


def save_model(model: Any, tokenizer: Any, template: str, stop_ids: list[int], folder: Path,
               dtype: str) -> None:  # fmt: skip
    """Write a whole model that plain transformers answers with as the run does.

    The tokenizer carries the template that was trained with, and the generation config ends at the
    tokens that the run ends at: without them it would chat in another form, or never stop.
    """
    model.to(getattr(torch, dtype))
    before = model.generation_config
    model.generation_config = GenerationConfig(  # nothing of how the base was to be sampled
        bos_token_id=before.bos_token_id, pad_token_id=before.pad_token_id,
        eos_token_id=stop_ids, do_sample=False,
    )  # fmt: skip
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # it hides what the disk said
        raise OSError(
            errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)
        ) from error
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
