"""Killed with SIGKILL at random moments and started again: the same bytes as never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import record

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tiny

KILLS = 12
RECIPE = """
model.name = "{base}"
[data]
train = "rows.jsonl"
[method]
rank = 4
dropout = 0.1
[train]
max_steps = 400
batch_size = 8
learning_rate = 3e-3
save_every = 7
evaluate_every = 5
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "retone", "run", "my.toml"], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def prepare(folder: Path, base: Path) -> Path:
    folder.mkdir()
    (folder / "my.toml").write_text(RECIPE.format(base=base))
    rows = [{"prompt": f"Say {n} twice.", "completion": f"{n} and {n}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    varying = {"rows_per_s", "tokens_per_s", "seconds", "memory_bytes"}
    lines = (folder / "runs/my/metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in varying} for line in lines]


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    whole = prepare(tmp_path / "whole", base)
    assert start(whole).wait() == 0

    killed = prepare(tmp_path / "killed", base)
    moments = random.Random(0)
    kills = 0
    steps_at_kill = []
    metrics = killed / "runs/my/metrics.jsonl"
    for _ in range(KILLS):
        before = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        process = start(killed)
        while process.poll() is None:
            now = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
            if now != before and now > 0:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        steps_at_kill.append(len(metrics.read_text().splitlines()) if metrics.is_file() else 0)
    assert start(killed).wait() == 0

    assert [path.name for path in (killed / "runs").glob("[!.]*")] == ["my"]  # beside answers
    assert logged(killed) == logged(whole)
    weights = "runs/my/adapter/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    record("kill", {"kills": kills, "log_lines_at_kill": steps_at_kill, "bit_for_bit": True})
    assert kills >= KILLS // 2
