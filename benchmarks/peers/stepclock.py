"""Times the optimizer steps of a transformers Trainer and checks the rows it trains on.

Runs inside the peers' own environments, so it needs only torch and transformers.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

IGNORED = -100  # label of a token that does not enter the loss


def peak_rss() -> int:
    """Most bytes that this process held; unlike ru_maxrss, not what its parent held at exec."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


class StepClock(TrainerCallback):
    """Time between the ends of optimizer steps, rows and tokens of each, losses, peak memory.

    `reference` holds, in file order, {"ids": [...], "trained": [indices]} for every row.
    """

    def __init__(self, reference: list[dict[str, list[int]]]) -> None:
        self.reference = reference
        self.times: list[float] = []
        self.losses: list[float] = []
        self.batches: list[tuple[int, int, int]] = []  # rows, real tokens, positions with padding
        self.rows: dict[str, Any] = {}
        self.setting: dict[str, Any] = {}
        self.peak = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Compare the rows as the collator gives them, then start the clock."""
        model, shard = given["model"], given["train_dataloader"]
        self.setting = {
            "weights": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
            "autocast": bool(args.bf16),
            "attention": model.config._attn_implementation,
            "recomputes": bool(getattr(model, "is_gradient_checkpointing", False)),
            "sampling": getattr(args, "train_sampling_strategy", "random"),
            "optimizer": str(getattr(args.optim, "value", args.optim)),
        }
        loader = getattr(shard, "base_dataloader", shard)
        collate = loader.collate_fn
        self.rows = compare((collate([row]) for row in loader.dataset), self.reference)

        def counted(rows: list[Any]) -> Any:
            batch = collate(rows)
            real = int(batch["attention_mask"].sum())
            self.batches.append((len(rows), real, batch["input_ids"].numel()))
            return batch

        loader.collate_fn = counted
        self.times.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The end of an optimizer step."""
        self.times.append(time.perf_counter())
        print(f"step {len(self.times) - 1} of {state.max_steps}", file=sys.stderr, flush=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """The loss of every step (the trainer logs every step)."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Peak memory of this process before anything is saved."""
        self.peak = peak_rss()

    def result(self, *packages: str) -> dict[str, Any]:
        """What train_cpu.py reads; `packages` are those whose versions it should name."""
        steps = len(self.times) - 1
        done = self.batches[:steps]  # the loader fetches one batch ahead
        return {
            "step_seconds": [b - a for a, b in zip(self.times, self.times[1:], strict=False)],
            "step_rows": [rows for rows, _, _ in done],
            "losses": self.losses,
            "tokens": sum(real for _, real, _ in done),
            "positions": sum(all_ for _, _, all_ in done),
            "peak_rss_bytes": self.peak,
            "threads": torch.get_num_threads(),
            "compared": self.rows,
            "setting": self.setting,
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("torch", "transformers", "peft", "accelerate", *packages)
            },
        }


def compare(batches: Iterable[Any], reference: list[dict[str, list[int]]]) -> dict[str, Any]:
    """How many rows have the reference's ids, and how many train exactly its tokens."""
    found: dict[str, Any] = {"rows": 0, "same_ids": 0, "same_trained": 0, "first_difference": None}
    for batch, ours in zip(batches, reference, strict=True):
        real = batch["attention_mask"][0].bool()
        ids = batch["input_ids"][0][real].tolist()
        labels = batch["labels"][0][real].tolist()
        theirs = [label for label in labels if label != IGNORED]
        expected = [ours["ids"][index] for index in ours["trained"]]
        found["rows"] += 1
        found["same_ids"] += ids == ours["ids"]
        found["same_trained"] += theirs == expected
        if found["first_difference"] is None and (ids != ours["ids"] or theirs != expected):
            found["first_difference"] = {
                "row": found["rows"],
                "ids": {"retone": len(ours["ids"]), "here": len(ids)},
                "last_ids": {"retone": ours["ids"][-4:], "here": ids[-4:]},
                "trained": {"retone": len(expected), "here": len(theirs)},
                "last_trained": {"retone": expected[-3:], "here": theirs[-3:]},
            }
    return found


def read_job() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job file named on the command line, and the training rows."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job, json.loads(Path(job["rows"]).read_text(encoding="utf-8"))["train"]
