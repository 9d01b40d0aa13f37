"""GGUF files as bases: unpacked once into a folder of float32 safetensors.

A packed type such as Q4_K is a rounded copy of the model; what is tuned is that copy, and every
report says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from retone.errors import MachineError
from retone.run_dir import whole_folder


def unpacked_gguf(file: Path, sha256: str, cache: Path) -> Path:
    """The folder of an unpacked GGUF file, made on first use and kept by its hash.

    Raises:
        MachineError: the file cannot be unpacked: another format, an unknown architecture, no room.
    """
    home = cache / "gguf"
    folder = home / f"{file.stem}-{sha256[:12]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{folder.name}.lock"):
            if not folder.is_dir():
                with whole_folder(folder) as staging:
                    convert_in_child(file.absolute(), staging)
    except OSError as error:
        raise MachineError(
            f"{file.name} could not be unpacked into the cache",
            f"{home}: {error}",
            "make room there, or set RETONE_CACHE to a folder that can be written",
            "cache-unwritable",
        ) from error
    return folder


def run_python(arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run this Python; -P keeps files of the working directory from shadowing modules."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def last_line(text: str) -> str:
    """What a failed program said in the end: its last error, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1]


def convert_in_child(gguf: Path, out: Path) -> None:
    """Run `unpack_gguf` in a process of its own: its memory, bars and warnings end with it.

    Raises:
        MachineError: the process failed; the last line that it wrote is quoted.
    """
    script = (
        "import sys; from retone.models.gguf_files import unpack_gguf; unpack_gguf(*sys.argv[1:])"
    )
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = run_python(["-c", script, str(gguf), str(out)], quiet)
    if done.returncode != 0:
        raise MachineError(
            f"{gguf.name} could not be unpacked",
            f"exit status {done.returncode}: {last_line(done.stderr)}",
            "it takes memory and disk of 4 bytes a parameter and more: make room for that, "
            "then run the same again",
            "unpack-failed",
        )


def unpack_gguf(gguf: str, out: str) -> None:
    """Write the weights of a GGUF as float32 safetensors, with config and tokenizer."""
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = os.path.split(gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # transformers splits text like GPT-2 whatever the file says. SmolLM's vocabulary was trained
    # with every digit apart: without it "\n\n1." gets other ids than the hub's tokenizer and
    # llama.cpp give.
    splits = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if splits is not None and splits.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,  # Q4_1 is scale * q + minimum in half precision: bfloat16 would round
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
