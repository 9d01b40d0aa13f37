"""A model folder of transformers as one GGUF file, which llama.cpp and what is built on it run.

    gguf_architectures  the config and the tensors in llama.cpp's words; what it computes otherwise
    gguf_vocabulary     the tokenizer in llama.cpp's words
    gguf_quants         number types of files, tensors and rows
    gguf_lora           an adapter beside the file of its base

Specification: github.com/ggml-org/ggml/blob/master/docs/gguf.md. What this writer does not cover is
refused; a checkout of llama.cpp, where the user names one, writes those (`convert_with_checkout`).
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from retone.errors import InputError, MachineError
from retone.models.folders import folder_problems, refuse_incomplete
from retone.models.gguf_architectures import (
    Architecture,
    add_hyperparameters,
    converted,
    hyperparameters,
    not_covered,
    read_architecture,
    rope_arrays,
    tensor_names,
)
from retone.models.gguf_files import last_line, run_python
from retone.models.gguf_quants import Kind, gguf_kinds, kind_named, pack, packed_bytes, type_of
from retone.models.gguf_vocabulary import read_vocabulary

_IDLE = "rotary_emb.inv_freq"  # older files keep the rope's frequencies, which the config gives


def write_gguf(
    model: Path, file: Path, kind: str, *, template: str, name: str, licence: str | None = None
) -> dict[str, int]:
    """Write a model as GGUF; the file appears whole or not at all.

    One tensor is in memory at a time. Where blocks of a type do not divide the rows of a tensor, it
    is written in the type that llama.cpp takes then, as the counts show.

    Args:
        model: folder saved by save_pretrained, with tokenizer.json.
        file: to write, in place of one that stands there.
        kind: a name of `gguf_kinds`.
        template: chat template that the file carries; empty for none.
        name: of the model, for people.
        licence: SPDX expression.

    Returns:
        How many tensors have which type: {"F32": 61, "Q4_K": 180 ...}.

    Raises:
        InputError: the folder is incomplete; the kind is unknown; the model is none that llama.cpp
            would compute and tokenise as transformers does (`gguf-not-covered`, `gguf-tokenizer`).
        MachineError: the kind needs llama.cpp's quantiser, or the disk is full.
    """
    chosen = kind_named(kind)
    refuse_incomplete(str(model), folder_problems(model))
    architecture, config = read_architecture(model)
    tensors = Tensors(model, architecture, config)
    (rows, _) = tensors.shapes["token_embd.weight"]
    vocabulary = read_vocabulary(model, rows, template)
    with whole_gguf(file, architecture.name) as writer:
        writer.add_type("model")
        writer.add_name(vocabulary.name(name))
        if licence:
            writer.add_license(licence)
        writer.add_file_type(chosen.file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_hyperparameters(writer, hyperparameters(architecture, config))
        vocabulary.add_to(writer)
        return _write_tensors(writer, tensors, chosen)


def _write_tensors(writer: GGUFWriter, tensors: Tensors, kind: Kind) -> dict[str, int]:
    """The table of all tensors, then their values one by one."""
    types = {
        name: type_of(name, shape, kind, layers=tensors.layers, tied=tensors.tied)
        for name, shape in tensors.shapes.items()
    }
    for name, shape in tensors.shapes.items():
        size = packed_bytes(shape, types[name])
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in tensors.shapes:
        values = tensors.read(name)
        _check_range(name, values, types[name])
        writer.write_tensor_data(pack(values, types[name]))
    return {each.name: count for each, count in sorted(Counter(types.values()).items())}


def _check_range(name: str, values: NDArray[np.float32], kind: GGMLQuantizationType) -> None:
    largest = float(np.abs(values).max(initial=0.0))  # nan stays nan
    limit = float(np.finfo(np.float16).max)
    if not np.isfinite(largest) or (kind == GGMLQuantizationType.F16 and largest > limit):
        raise InputError(
            f"a weight does not fit into {kind.name}",
            f"{name}: the largest value is {largest}",
            "another kind, such as bf16"
            if np.isfinite(largest)
            else "train again: this is no number",
            "weights-out-of-range",
        )


class Tensors:
    """The tensors of a model folder by their names in the file.

    Attributes:
        shapes: in the order in which they are written.
        layers: blocks of the model.
        tied: the embeddings are the output head as well.

    Raises InputError where the folder lacks a tensor, or has one that llama.cpp would not read.
    """

    def __init__(self, folder: Path, architecture: Architecture, config: Any) -> None:
        self._folder, self._architecture, self._config = folder, architecture, config
        self.layers: int = config.num_hidden_layers
        self.tied: bool = config.tie_word_embeddings
        self._extra = rope_arrays(config)
        self._sources: dict[str, tuple[Path, str]] = {}
        shapes: dict[str, tuple[int, ...]] = {n: a.shape for n, a in self._extra.items()}
        problems = []
        names = gguf.get_tensor_name_map(architecture.code, self.layers)
        for file, own, shape, dtype in _stored(folder):
            name = names.get_name(own, try_suffixes=(".weight", ".bias"))
            if own.endswith(_IDLE) or (self.tied and own == "lm_head.weight"):
                continue  # transformers does not read them either
            if name is None:
                problems.append(f"{own} has no place in a file of {architecture.name}")
            elif not dtype.startswith(("F", "BF")) or dtype.startswith("F8"):
                problems.append(f"{own} holds packed weights ({dtype})")
            else:
                self._sources[name], shapes[name] = (file, own), shape
        problems += self._differences()
        if problems:
            more = [f"and {len(problems) - 8} more"] if len(problems) > 8 else []
            raise not_covered(folder, problems[:8] + more)
        self.shapes = dict(sorted(shapes.items(), key=lambda pair: _order(pair[0])))

    def _differences(self) -> list[str]:
        """What the architecture wants and the folder lacks, and the other way round."""
        wanted, may = tensor_names(self._architecture, self.layers)
        wanted |= set() if self.tied else {"output.weight"}
        found = set(self._sources)
        lacking = [f"{name} is missing" for name in sorted(wanted - found)]
        return lacking + [
            f"{name} ({self._sources[name][1]}) is nothing that {self._architecture.name} has"
            for name in sorted(found - wanted - may)
        ]

    @property
    def names(self) -> dict[str, str]:
        """Names of the file by those that transformers has."""
        return {own: name for name, (_, own) in self._sources.items()}

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as llama.cpp wants it, in float32."""
        from safetensors import safe_open

        if name in self._extra:
            return self._extra[name]
        file, own = self._sources[name]
        with safe_open(file, framework="pt") as weights:  # numpy has no bfloat16
            values: NDArray[np.float32] = weights.get_tensor(own).float().numpy()
        return np.ascontiguousarray(converted(name, values, self._architecture, self._config))


def _stored(folder: Path) -> Iterator[tuple[Path, str, tuple[int, ...], str]]:
    """File, name, shape and type of every tensor in a folder, from the headers alone."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    found = sorted(folder.glob("model-*-of-*.safetensors"))
    for file in found if index.is_file() else [folder / "model.safetensors"]:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (it is no dict)
                part = weights.get_slice(name)
                yield file, name, tuple(part.get_shape()), part.get_dtype()


def _order(name: str) -> tuple[int, str]:
    """Embeddings and head first, then block by block."""
    parts = name.split(".")
    return (int(parts[1]) if parts[0] == "blk" else -1, name)


@contextmanager
def whole_gguf(file: Path, architecture: str) -> Iterator[GGUFWriter]:
    """A writer whose file takes the name `file` when the block ends well, else vanishes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    writer = GGUFWriter(staging, architecture)
    try:
        yield writer
        writer.close()
        _take_name(Path(staging), file)
    except OSError as error:
        raise MachineError(
            f"{file.name} could not be written", f"{file.parent}: {error}",
            "make room there, or write to another folder", "disk-full",
        ) from error  # fmt: skip
    finally:
        writer.close()
        Path(staging).unlink(missing_ok=True)


def _take_name(staging: Path, file: Path) -> None:
    with staging.open("rb") as handle:
        os.fsync(handle.fileno())
    staging.chmod(0o644)
    os.replace(staging, file)


# ------------------------------------------------------------------------- every other architecture


def convert_with_checkout(checkout: Path, model: Path, file: Path, kind: str) -> None:
    """Write a model with the official converter of a llama.cpp checkout, in a process of its own.

    The template is the folder's own. It writes f32, f16, bf16 and q8_0; any other kind is made of
    such a file by llama.cpp's `llama-quantize`.

    Raises:
        InputError: the folder is no checkout of llama.cpp, or the kind is none of these.
        MachineError: the converter failed; its last line is quoted.
    """
    script = checkout / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise InputError(
            "this is no checkout of llama.cpp", f"{script} is not there",
            "git clone --depth 1 https://github.com/ggml-org/llama.cpp, then --llama-cpp llama.cpp",
            "no-checkout",
        )  # fmt: skip
    if not kind_named(kind).checkout:
        known = [name for name, row in gguf_kinds().items() if row.checkout]
        raise InputError(
            f"llama.cpp's converter does not write {kind}", f"it writes {', '.join(known)}",
            f"export bf16 first, then: llama-quantize {file.name} OUT.gguf {kind.upper()}",
            "not-converted",
        )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        staging = Path(folder) / "model.gguf"
        done = run_python(
            [str(script.absolute()), str(model.absolute()), "--outfile", str(staging.absolute()),
             "--outtype", kind],
            # The script imports its neighbours, which `run_python` would not let it find.
            {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(checkout.absolute())},
        )  # fmt: skip
        if done.returncode != 0 or not staging.is_file():
            raise MachineError(
                "llama.cpp's converter failed",
                f"exit status {done.returncode}: {last_line(done.stderr)}",
                f"a newer checkout may know this model, and may need: pip install -r "
                f"{checkout / 'requirements' / 'requirements-convert_hf_to_gguf.txt'}",
                "conversion-failed",
            )
        _take_name(staging, file)
