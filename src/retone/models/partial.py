"""Forward passes that compute only what is needed: some positions, or a shared prefix once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@contextmanager
def head_only_at(model: Any, index: Tensor) -> Iterator[None]:
    """Let only some positions through the output head inside the block.

    The logits come out as [1, positions, vocabulary], whatever else the model does to them.

    Args:
        model: a transformers causal language model.
        index: int64 [positions] into the flattened [batch * seq].
    """

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # [batch, seq, hidden]
        return (hidden.reshape(-1, hidden.shape[-1])[index].unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def leading_positions(model: Any) -> int:
    """Positions that the logits have before those of the input: learned embeddings, if any."""
    found = _active_prompt(model)
    return found.num_virtual_tokens if found and found.peft_type == PeftType.PROMPT_TUNING else 0


def _active_prompt(model: Any) -> Any:
    """peft's config of a prefix or prompt that the model begins with, or None."""
    bare = getattr(model, "module", model)
    if not isinstance(bare, PeftModel) or not bare.active_peft_config.is_prompt_learning:
        return None
    return None if bare._adapters_disabled else bare.active_peft_config


def has_plain_cache(model: Any) -> bool:
    """True where every layer keeps all keys and values, so that a prefix can be shared."""
    if _active_prompt(model) is not None:  # it fills the cache itself
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def prefix_cache(model: Any, prefix: Tensor, rows: int) -> DynamicCache:
    """Keys and values of a prefix, computed once and shown to every row; gradients flow through.

    Args:
        model: a causal language model for which `shared_prefix` is not 0.
        prefix: int64 [1, shared].
        rows: rows of the batch.
    """
    cache = DynamicCache(config=model.config)
    nothing = torch.empty(0, dtype=torch.long, device=prefix.device)
    with head_only_at(model, nothing):
        model(input_ids=prefix, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)  # [batch, heads, shared, head_dim]
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache
