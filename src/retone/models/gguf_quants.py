"""Number types of GGUF files: which tensor gets which, and rows packed into it.

Types in blocks of 32 and below are packed by the package gguf, the K-quants (blocks of 256) by
llama.cpp's own quantiser, which the wheel xllamacpp carries as a shared library.
"""

from __future__ import annotations

import ctypes
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants
from numpy.typing import NDArray

from retone.errors import InputError, MachineError, nearest

# Parts of names of matrices that suffer most from rounding.
_SENSITIVE = ("attn_v.weight", "attn_qkv.weight", "ffn_down.weight")


@cache
def gguf_table(name: str) -> Any:
    """One table of tables/gguf.toml."""
    text = (files("retone") / "tables" / "gguf.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)[name]


@dataclass(frozen=True)
class Kind:
    """A row of the kinds of tables/gguf.toml, which says what the fields mean."""

    name: str
    file_type: LlamaFileType
    weights: GGMLQuantizationType
    output: GGMLQuantizationType
    more: GGMLQuantizationType
    checkout: bool

    @property
    def types(self) -> set[GGMLQuantizationType]:
        """Every type that it asks for."""
        return {self.weights, self.output, self.more}


@cache
def gguf_kinds() -> Mapping[str, Kind]:
    """Kinds of files by name: f32, f16, bf16, q8_0, q5_1, q4_0, q6_k, q5_k_m, q4_k_m."""
    return {
        row["name"]: Kind(
            row["name"],
            LlamaFileType[row["file_type"]],
            GGMLQuantizationType[row["weights"]],
            GGMLQuantizationType[row["output"]],
            GGMLQuantizationType[row.get("more", row["weights"])],
            row.get("checkout", False),
        )
        for row in gguf_table("kind")
    }


def kind_named(name: str) -> Kind:
    """A kind by name.

    Raises:
        InputError: there is no such kind.
        MachineError: it needs llama.cpp's quantiser, and xllamacpp is not installed.
    """
    kinds = gguf_kinds()
    if name not in kinds:
        raise InputError(
            "this kind of GGUF file is not known",
            f"{name!r}{nearest(name, kinds)}",
            f"one of {', '.join(kinds)}",
            "unknown-gguf-kind",
        )
    if any(_is_k(each) for each in kinds[name].types):
        _quantiser()
    return kinds[name]


def type_of(
    tensor: str, shape: tuple[int, ...], kind: Kind, *, layers: int, tied: bool
) -> GGMLQuantizationType:
    """The type of one tensor.

    Args:
        tensor: its name in the file.
        shape: rows before columns.
        kind: of the file.
        layers: blocks that the model has.
        tied: the embeddings are the output head as well.
    """
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if tensor == "output.weight" or (tied and tensor == "token_embd.weight"):
        return _fitting(kind.output, shape[-1])
    if tensor.endswith(_SENSITIVE) and _gets_more(int(tensor.split(".")[1]), layers):
        return _fitting(kind.more, shape[-1])
    return _fitting(kind.weights, shape[-1])


def _gets_more(layer: int, layers: int) -> bool:
    """Layers whose rounding costs most: `use_more_bits` of llama.cpp."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: GGMLQuantizationType, width: int) -> GGMLQuantizationType:
    """The type, or what llama.cpp takes where its blocks do not divide a row."""
    if width % GGML_QUANT_SIZES[wanted][0] == 0:
        return wanted
    other = gguf_table("fallback")["types"].get(wanted.name)
    return _fitting(GGMLQuantizationType[other], width) if other else GGMLQuantizationType.F16


def packed_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor in a type."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape) // block * size)


def pack(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[Any]:
    """Values in a type, as an array of just its bytes in memory; columns divide into blocks.

    Raises MachineError as `kind_named`, for K-quants.
    """
    if not _is_k(kind):
        packed: NDArray[Any] = quants.quantize(values, kind)
        return packed
    rows, columns = values.shape
    source = np.ascontiguousarray(values)
    target = np.empty(packed_bytes(values.shape, kind), np.uint8)
    written = _quantiser().ggml_quantize_chunk(
        int(kind), source.ctypes.data, target.ctypes.data, 0, rows, columns, None
    )
    assert written == target.nbytes
    return target


def _is_k(kind: GGMLQuantizationType) -> bool:
    return str(kind.name).endswith("_K")


@cache
def _quantiser() -> Any:
    """The shared library of the wheel xllamacpp, which exports llama.cpp's C functions."""
    found = find_spec("xllamacpp")
    folders = [Path(each) for each in (found.submodule_search_locations or ())] if found else []
    libraries = [file for each in folders for file in sorted(each.glob("xllamacpp*.*"))
                 if file.suffix in (".so", ".pyd", ".dylib")]  # fmt: skip
    try:
        library = ctypes.CDLL(str(libraries[0]))
        quantise = library.ggml_quantize_chunk
    except (IndexError, OSError, AttributeError) as error:
        problem = "not installed: xllamacpp" if found is None else f"{folders}: {error}"
        raise MachineError(
            "K-quants are packed by llama.cpp's quantiser, which is not here",
            problem,
            "pip install 'retone[llamacpp]', or another kind: q8_0, q5_1 or q4_0",
            "no-llamacpp",
        ) from error
    # size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix), ggml.h
    quantise.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                         ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]  # fmt: skip
    quantise.restype = ctypes.c_size_t
    return library
