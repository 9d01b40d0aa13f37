"""Forward passes that compute only what is needed: some positions, a prefix once, one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


def no_head(model: Any) -> AbstractContextManager[None]:
    """Let no position through the output head inside the block."""
    return head_only_at(model, torch.empty(0, dtype=torch.long, device=model.device))


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
    with no_head(model):
        model(input_ids=prefix, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)  # [batch, heads, shared, head_dim]
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache


def learned_cache(model: Any, rows: int) -> Any:
    """Where keys and values go: empty, or with those of a learned prefix or prompt before them."""
    learned = _active_prompt(model)
    if learned is None:
        return DynamicCache(config=model.config)
    if learned.peft_type != PeftType.PROMPT_TUNING:
        return model.get_prompt(rows)
    cache = DynamicCache(config=model.config)
    embeddings = model.get_prompt(batch_size=rows).to(model.base_model.dtype)
    with no_head(model):
        model.base_model(inputs_embeds=embeddings, past_key_values=cache)
    return cache


def forward_last(model: Any, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Logits [batch, vocabulary] behind the last of `ids`.

    Args:
        model: a causal language model.
        ids: int64 [batch, new], what is not in the cache yet.
        mask: int64 [batch, seq], 0 where padded; the cache and `ids` together.
        cache: keys and values of what came before; those of `ids` are added.
    """
    # What is learned stands in the cache already, so peft need not add it.
    network = model.base_model if _active_prompt(model) is not None else model
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    rows, new = ids.shape
    # Not `logits_to_keep`: it makes a slice, for which torch copies the head's weights once a row.
    with head_only_at(model, torch.arange(1, rows + 1, device=ids.device) * new - 1):
        output = network(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
    logits: Tensor = output.logits[0]
    return logits


@contextmanager
def base_or_tuned(model: Any, *, tuned: bool) -> Iterator[None]:
    """Inside the block a model is the tuned one, or the base."""
    if tuned or not hasattr(model, "disable_adapter"):
        yield
    else:
        with model.disable_adapter():
            yield


def joined(cache: Any, mask: Tensor, others: Any, other_mask: Tensor) -> tuple[Any, Tensor]:
    """One cache and mask of the rows of two, the shorter ones padded in front.

    Args:
        cache, others: with all keys and values (`has_plain_cache`).
        mask, other_mask: int64 [batch, seq] of them.
    """
    length = max(mask.shape[1], other_mask.shape[1])

    def padded(tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = length - shape[dim]
        return torch.cat([tensor.new_zeros(shape), tensor], dim=dim) if shape[dim] else tensor

    for layer, other in zip(cache.layers, others.layers, strict=True):
        layer.keys = torch.cat([padded(layer.keys, 2), padded(other.keys, 2)])
        layer.values = torch.cat([padded(layer.values, 2), padded(other.values, 2)])
    return cache, torch.cat([padded(mask, 1), padded(other_mask, 1)])


def without_leading(cache: Any, mask: Tensor) -> Tensor:
    """The mask without the positions in front that no row needs; they leave the cache as well."""
    first = int(mask.any(0).int().argmax())
    if first:
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]
    return mask[:, first:]
