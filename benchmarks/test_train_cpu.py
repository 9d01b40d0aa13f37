"""`make bench`: runs train_cpu.py and records its JSON. No figure of time is asserted here."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATIOS = {"rows_per_s", "peak_memory", "test_loss"}
# Other arguments make a trial: it is checked in the same way, but not kept among the results.
ARGUMENTS = shlex.split(os.environ.get("RETONE_BENCH_ARGS", ""))


def record(name: str, payload: dict[str, Any], folder: Path) -> Path:
    """proof/record.py's function: adds date, commit, versions and hardware."""
    file = HERE.parent / "proof" / "record.py"
    spec = importlib.util.spec_from_file_location("proof_record", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: Path = module.record(name, payload, folder)
    return written


def test_train_cpu(tmp_path: Path) -> None:
    script = HERE / "train_cpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json", *ARGUMENTS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    payload = json.loads(done.stdout)
    record("train_cpu", payload, tmp_path if ARGUMENTS else HERE / "results")

    setting = payload["setting"]
    ran = {name: payload[name] for name in ("retone", "retone-plain")}
    ran |= {name: peer for name, peer in payload["peers"].items() if "not_run" not in peer}
    assert set(payload["ratio"]) == RATIOS
    if len(ran) > 2:
        assert all(ratio > 0 for ratio in payload["ratio"].values())
    for name, found in ran.items():
        assert found["steps"] == ran["retone"]["steps"], name
        if setting["epochs"]:
            assert found["compared"]["rows"] == setting["train_rows"], name
            assert found["rows"] == setting["epochs"] * setting["train_rows"], name
        assert found["test_loss"] < setting["base_test_loss"], name
        for losses in found["losses"]:
            part = max(1, len(losses) // 4)
            assert statistics.mean(losses[-part:]) < statistics.mean(losses[:part]), name
    # The fast path and its plain twin end with the same loss.
    fast, plain = ran["retone"]["test_loss"], ran["retone-plain"]["test_loss"]
    assert abs(fast - plain) < 0.03 * plain
