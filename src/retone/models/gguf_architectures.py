"""What llama.cpp computes for an architecture, and a transformers config in its words.

A row of tables/gguf.toml says which tensors an architecture has and what llama.cpp assumes about
it. Whatever a config asks for beyond that is refused: a file that loads and computes something
else would be worse than none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from retone.errors import InputError
from retone.models.gguf_quants import gguf_table

Metadata = dict[str, int | float | str]
Arrays = dict[str, NDArray[np.float32]]

# Fields of a rope whose meaning in llama.cpp is another one, or that it does not have.
_YARN_EXTRAS = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
# Layers by which llama.cpp knows the one size whose attention is scaled by hidden / heads.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_PATTERN = {"gemma2": 2, "gemma3": 6}  # every so many layers one without a window


@dataclass(frozen=True)
class Architecture:
    """A row of the architectures of tables/gguf.toml, which says what the fields mean."""

    name: str
    activation: str
    tensors: tuple[str, ...]
    optional: tuple[str, ...]
    permuted: bool
    norm_offset: float
    tied: bool
    window: bool
    rope: tuple[str, ...]

    @property
    def code(self) -> gguf.MODEL_ARCH:
        """What the package gguf calls it."""
        return next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)


def not_covered(folder: Path, problems: list[str]) -> InputError:
    """The refusal of a model that this writer would get wrong."""
    return InputError(
        "this model cannot be written as GGUF from its folder alone",
        f"{folder}: {'; '.join(problems)}",
        "--llama-cpp CHECKOUT   (a folder of github.com/ggml-org/llama.cpp, whose converter knows "
        "more models)",
        "gguf-not-covered",
    )


def read_architecture(folder: Path) -> tuple[Architecture, Any]:
    """The architecture of a model folder, and its config as transformers reads it.

    Raises InputError for one that is not in the table, and for what llama.cpp computes otherwise.
    """
    from transformers import AutoConfig

    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classes = given.get("architectures") or ["none"]
    rows = [row for row in gguf_table("architecture") if classes[0] in row["classes"]]
    if not rows:
        known = [name for row in gguf_table("architecture") for name in row["classes"]]
        found = f"config.json names the architecture {classes[0]}; known are {', '.join(known)}"
        raise not_covered(folder, [found])
    row = rows[0]
    architecture = Architecture(
        row["name"], row["activation"], tuple(row["tensors"]), tuple(row.get("optional", ())),
        row.get("permuted", False), row.get("norm_offset", 0.0), row.get("tied", False),
        row.get("window", False), tuple(row["rope"]),
    )  # fmt: skip
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if problems := list(_problems(architecture, config)):
        raise not_covered(folder, problems)
    return architecture, config


def _problems(architecture: Architecture, config: Any) -> Iterator[str]:
    """Everything in a config that llama.cpp would not compute."""
    if getattr(config, "quantization_config", None):
        yield "the weights are packed (quantization_config)"
    own = getattr(config, "hidden_activation", None) or config.hidden_act
    if own != architecture.activation:
        yield f"the activation is {own}, not {architecture.activation}"
    for kind, rope in ropes(config).items():
        yield from _rope_problems(architecture, kind, rope)
    if architecture.tied and not config.tie_word_embeddings:
        yield f"the output head is not the embeddings (llama.cpp ties them for {architecture.name})"
    if architecture.name == "phi3" and head_size(config) != _plain_head_size(config):
        yield f"head_dim is {head_size(config)}, not hidden_size / num_attention_heads"
    if architecture.window:
        yield from _gemma_problems(architecture, config)


def _rope_problems(architecture: Architecture, kind: str, rope: dict[str, Any]) -> Iterator[str]:
    scaling = rope.get("rope_type", "default")
    if scaling not in architecture.rope:
        yield f"rope of type {scaling} (known for it: {', '.join(architecture.rope)})"
    if kind == "sliding_attention" and scaling != "default":
        yield f"rope of type {scaling} in the layers with a sliding window"
    extras = [name for name in _YARN_EXTRAS if rope.get(name) is not None]
    if scaling == "yarn" and (extras or rope.get("truncate") is False):
        yield f"rope of type yarn with {', '.join(extras) or 'truncate = false'}"
    if architecture.name != "phi3" and rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield "a rope over a part of each head (partial_rotary_factor)"


def _gemma_problems(architecture: Architecture, config: Any) -> Iterator[str]:
    if getattr(config, "use_bidirectional_attention", None):
        yield "attention in both directions"
    heads = config.num_hidden_layers == _LARGEST[architecture.name]
    assumed = _plain_head_size(config) if heads else head_size(config)
    if config.query_pre_attn_scalar != assumed:
        yield f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, llama.cpp takes {assumed}"
    if _pattern(config) is None:
        yield "layers with and without a sliding window in no regular order (layer_types)"
    caps = (config.attn_logit_softcapping, config.final_logit_softcapping)
    if architecture.name == "gemma2" and None in caps:
        yield f"softcapping of {caps} (llama.cpp caps attention and logits of gemma2 always)"
    if architecture.name == "gemma3" and any(caps):
        yield f"softcapping of {caps} (llama.cpp caps nothing of gemma3)"


def ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rope parameters by type of layer; one entry where all layers share them."""
    rope: dict[str, Any] = config.rope_parameters
    return rope if "full_attention" in rope else {"full_attention": rope}


def head_size(config: Any) -> int:
    """Elements of a head of attention."""
    return int(getattr(config, "head_dim", None) or _plain_head_size(config))


def _plain_head_size(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def _pattern(config: Any) -> int | None:
    """Every how many layers one has no window; None where they follow no such order."""
    full = [at + 1 for at, kind in enumerate(config.layer_types) if kind == "full_attention"]
    layers = config.num_hidden_layers
    period = full[0] if full else layers + 1
    return period if full == list(range(period, layers + 1, period)) else None


def hyperparameters(architecture: Architecture, config: Any) -> Metadata:
    """Keys of the file, without `ARCHITECTURE.` before them, and their values."""
    size = head_size(config)
    rope = ropes(config)["full_attention"]
    found: Metadata = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads or config.num_attention_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": int(size * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    found |= _rope_scaling(config, rope)
    return found | _window(architecture, config)


def _window(architecture: Architecture, config: Any) -> Metadata:
    window: Any = getattr(config, "sliding_window", None)
    if not architecture.window:
        # Within the window, attention with and without one is the same.
        shorter = window and getattr(config, "use_sliding_window", True)
        found: Metadata = {"attention.sliding_window": 0} if architecture.name == "phi3" else {}
        if shorter:
            found["context_length"] = min(config.max_position_embeddings, int(window))
        return found
    found = {"attention.sliding_window": int(window)}
    if (period := _pattern(config)) != _PATTERN[architecture.name] and period is not None:
        found["attention.sliding_window_pattern"] = period
    if "sliding_attention" in ropes(config):
        found["rope.freq_base_swa"] = float(ropes(config)["sliding_attention"]["rope_theta"])
    if architecture.name == "gemma2":
        found["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return found


def _rope_scaling(config: Any, rope: dict[str, Any]) -> Metadata:
    scaling = rope.get("rope_type", "default")
    if scaling == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if scaling == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
        }
    if scaling == "longrope":
        return {
            "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
            "rope.scaling.attn_factor": float(_scaled_rope(config, scaling)[1]),
        }
    return {}


def _scaled_rope(config: Any, scaling: str) -> tuple[Any, float]:
    """Frequencies of a scaled rope, and what it multiplies attention by, from transformers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling](config, "cpu")
    return frequencies, factor


def rope_arrays(config: Any) -> Arrays:
    """Tensors of the file that divide the rope's frequencies: shape [rotated / 2], float32."""
    rope = ropes(config)["full_attention"]
    scaling = rope.get("rope_type", "default")
    if scaling == "llama3":
        frequencies = _scaled_rope(config, scaling)[0].double().numpy()
        size = head_size(config)
        plain = float(rope["rope_theta"]) ** -(np.arange(0, size, 2) / size)
        return {"rope_freqs.weight": (plain / frequencies).astype(np.float32)}
    if scaling == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    return {}


def add_hyperparameters(writer: gguf.GGUFWriter, values: Metadata) -> None:
    """Write keys under the architecture's name, each in the type of its value."""
    adders = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        adders[type(value)](f"{writer.arch}.{key}", value)


def tensor_names(architecture: Architecture, layers: int) -> tuple[set[str], set[str]]:
    """Names that the file must hold (but for the head), and those it may hold as well."""
    blocks = [f"blk.{layer}." for layer in range(layers)]
    wanted = {block + name for block in blocks for name in architecture.tensors}
    may = {block + name for block in blocks for name in architecture.optional}
    return wanted | {"token_embd.weight", "output_norm.weight"}, may


def permute(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k from halves (i, i + d / 2) to neighbours (2 i, 2 i + 1) of each head.

    transformers rotates the first half of a head against the second, llama.cpp neighbours
    (`permute` of llama.cpp's conversion/llama.py). Shape [heads * d, ...], kept.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def converted(
    name: str, values: NDArray[np.float32], architecture: Architecture, config: Any
) -> NDArray[np.float32]:
    """A tensor as llama.cpp wants it: `name` as in the file, values as transformers has them."""
    if architecture.permuted and ".attn_q." in name:
        return permute(values, config.num_attention_heads)
    if architecture.permuted and ".attn_k." in name:
        return permute(values, config.num_key_value_heads or config.num_attention_heads)
    if architecture.norm_offset and name.endswith("norm.weight"):
        return values + np.float32(architecture.norm_offset)
    return values
