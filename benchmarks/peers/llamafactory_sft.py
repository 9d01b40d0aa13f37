"""LlamaFactory's own training entry, in its own environment; run by train_cpu.py.

Its quickest setting on a CPU: weights in bf16 (it loads them as they are stored) without autocast,
eager attention, nothing recomputed, rows grouped by length.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

from stepclock import StepClock, read_job

TEMPLATE = "smollm2_benchmark"


def stand_in_for_torchaudio() -> None:
    """An empty module in its place: it is imported always, used for sound only, and its published
    builds ask for CUDA libraries."""
    stub = types.ModuleType("torchaudio")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stub


def register() -> None:
    """ChatML that ends with the end token.

    Its built-in `chatml` also trains the newline after the end token; leaving that newline away
    makes the trained tokens those of the other candidates.
    """
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template

    register_template(
        name=TEMPLATE,
        format_user=StringFormatter(
            slots=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]
        ),
        format_system=StringFormatter(slots=["<|im_start|>system\n{{content}}<|im_end|>\n"]),
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
        stop_words=["<|im_end|>"],
    )


def write_dataset(rows: list[dict[str, Any]], folder: Path) -> None:
    """The rows in its ShareGPT form, and the file that describes them."""
    turns = [{"messages": row["messages"]} for row in rows]
    (folder / "rows.json").write_text(json.dumps(turns), encoding="utf-8")
    roles = {f"{role}_tag": role for role in ("user", "assistant", "system")}
    entry = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", **roles},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry}), encoding="utf-8")


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """The arguments that its command line would read from a file."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model_bf16"],
        "template": TEMPLATE,
        "dataset": "rows",
        "dataset_dir": job["work"],
        "cutoff_len": 1024,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "output_dir": job["adapter"],
        "num_train_epochs": job["epochs"],
        "max_steps": job["steps"] or -1,
        "per_device_train_batch_size": job["batch_size"],
        "gradient_accumulation_steps": 1,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": job["warmup_steps"],
        "seed": job["seed"],
        "use_cpu": True,
        "flash_attn": "disabled",  # eager attention
        "disable_gradient_checkpointing": True,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def main() -> None:
    """Train, save the adapter, print one JSON line."""
    job, rows = read_job()
    stand_in_for_torchaudio()
    from llamafactory.train.tuner import run_exp

    register()
    write_dataset(rows, Path(job["work"]))
    clock = StepClock(rows)
    run_exp(settings(job), callbacks=[clock])
    print("\n" + json.dumps(clock.result("llamafactory")))


if __name__ == "__main__":
    main()
