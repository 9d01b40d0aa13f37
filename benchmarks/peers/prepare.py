"""Writes the rows that every candidate trains and is judged on, and measures the machine.

    prepare.py rows FOLDER  rows.json (train and test rows: messages, retone's ids, indices of
                            trained tokens) and model_bf16, the base model stored in bf16
    prepare.py rates        prints one JSON line: matmul rates, threads, processor, versions

Runs in retone's environment, in a process of its own so that train_cpu.py stays without torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retone.chat_template import ChatTemplate
from retone.config import Recipe
from retone.conversation import Message
from retone.data.sources import source_path
from retone.models.loading import load_tokenizer
from retone.models.locate import locate
from retone.planning import matmul_rate, probe_machine
from retone.recipe_file import load_recipe

SIZES = (1024, 4096)


def encoded(recipe: Recipe, file: Path, template: ChatTemplate) -> list[dict[str, Any]]:
    """Every pair of a data file after the recipe's system prompt, with retone's own ids."""
    columns = recipe.data.columns
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        messages = [
            Message("system", str(recipe.data.system)),
            Message("user", pair[columns["prompt"]]),
            Message("assistant", pair[columns["completion"]]),
        ]
        (row,) = template.encode(messages)
        found.append(
            {
                "messages": [message.as_dict() for message in messages],
                "ids": list(row.input_ids),
                "trained": [at for at, weight in enumerate(row.loss_weights) if weight],
            }
        )
    return found


def write_rows(folder: Path) -> None:
    """rows.json, which also says where the model lies and what it is, and the bf16 copy."""
    recipe = load_recipe("yoda")
    assert recipe.data.test is not None
    base = locate(recipe.model.name)
    template = ChatTemplate(load_tokenizer(base), name=base.name)
    files = {
        "train": source_path(recipe.data.train),
        "test": source_path(recipe.data.test),
    }
    content: dict[str, Any] = {
        split: encoded(recipe, file, template) for split, file in files.items()
    }
    content["model"] = {
        "path": str(base.path),
        "name": base.name,
        "sha256": base.sha256,
        "note": base.note,
    }
    content["data_sha256"] = {
        split: hashlib.sha256(file.read_bytes()).hexdigest() for split, file in files.items()
    }
    (folder / "rows.json").write_text(json.dumps(content), encoding="utf-8")
    store_bf16(base.path, folder / "model_bf16")


def store_bf16(source: Path, folder: Path) -> None:
    """The same model with its weights stored in bf16, for tools that load what is stored."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        tensors = {name: part.to(torch.bfloat16) for name, part in load_file(file).items()}
        file.unlink()  # the copy may share the original's mode and must not be written in place
        save_file(tensors, file, metadata={"format": "pt"})
    config = folder / "config.json"
    facts = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    config.write_text(json.dumps(facts), encoding="utf-8")


def rates() -> dict[str, Any]:
    """Matmul rates in TFLOP/s by type and size, and what else tells machines apart."""
    import torch

    machine = asdict(probe_machine())
    return {
        "tflops": {
            f"{short}_{size}": round(matmul_rate(kind, size=size), 3)
            for short, kind in (("bf16", "bfloat16"), ("fp32", "float32"))
            for size in SIZES
        },
        "cpu": machine["name"],
        "cores": machine["cores"],
        "memory_bytes": machine["memory_bytes"],
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("retone", "torch", "transformers", "peft", "accelerate")
        },
    }


if __name__ == "__main__":
    if sys.argv[1] == "rows":
        write_rows(Path(sys.argv[2]))
    else:
        print(json.dumps(rates()))
