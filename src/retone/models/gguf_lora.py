"""A LoRA adapter as GGUF, which llama.cpp loads beside the GGUF file of its base."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from retone.errors import InputError
from retone.models.adapters import Part, read_part
from retone.models.gguf_architectures import Architecture, converted, read_architecture
from retone.models.gguf_export import Tensors, whole_gguf

_PREFIX = "base_model.model."


def write_lora_gguf(adapter: Path, base: Path, file: Path, *, name: str) -> None:
    """Write a plain LoRA adapter in float32; the file appears whole or not at all.

    llama.cpp adds `alpha / rank * B A` to a matrix, so alpha carries the adapter's own scale. Rows
    of B that make q and k are brought into the order that they have in the base's file.

    Args:
        adapter: folder saved by peft.
        base: folder of the model that it was trained on; sizes are taken from it.
        file: to write.
        name: of the adapter, for people.

    Raises:
        InputError: the adapter is more than LoRA on the model's matrices, or of another base; the
            base is none that `write_gguf` covers.
    """
    architecture, config = read_architecture(base)
    part = _plain(adapter)
    arrays = _arrays(adapter, part, Tensors(base, architecture, config), architecture, config)
    with whole_gguf(file, architecture.name) as writer:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, part.scale * part.rank)
        for each, values in arrays.items():
            writer.add_tensor(each, values, raw_dtype=GGMLQuantizationType.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _plain(adapter: Path) -> Part:
    try:
        return read_part(adapter)
    except InputError as error:
        raise _merge_instead(error.found) from error


def _merge_instead(found: str) -> InputError:
    return InputError(
        "this adapter cannot stand beside its base in llama.cpp",
        found,
        "export the merged model instead: --to gguf",
        "not-plain-lora",
    )


def _arrays(
    adapter: Path, part: Part, base: Tensors, architecture: Architecture, config: object
) -> dict[str, NDArray[np.float32]]:
    """The pairs of the file: NAME.lora_a [rank, columns], NAME.lora_b [rows, rank]."""
    names = base.names
    found: dict[str, NDArray[np.float32]] = {}
    problems = []
    for own in sorted({each.rpartition(".lora_")[0] for each in part.tensors}):
        a = part.tensors[f"{own}.lora_A.weight"].float().numpy()
        b = part.tensors[f"{own}.lora_B.weight"].float().numpy()
        name = names.get(f"{own.removeprefix(_PREFIX)}.weight")
        if name is None:
            problems.append(f"{own} is no matrix of the base's file")
        elif base.shapes[name] != (b.shape[0], a.shape[1]):
            problems.append(f"{own} is {(b.shape[0], a.shape[1])}, the base's {base.shapes[name]}")
        else:
            found[f"{name}.lora_a"] = np.ascontiguousarray(a)
            found[f"{name}.lora_b"] = np.ascontiguousarray(converted(name, b, architecture, config))
    if problems:
        raise _merge_instead(f"{adapter}: {'; '.join(problems[:8])}")
    return found
