"""How each candidate is started, and what its run measured; every one in a process of its own."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.venvs import HERE, Environment, PeerProblem, last_error

RUN_SECONDS = 5400  # for one training
WARM_UP = 2  # steps that the rate leaves out
OURS = ("retone", "retone-plain")
TRL = Environment("trl.txt")
LLAMAFACTORY = Environment("llamafactory.txt", ("llamafactory==0.9.5",))
PEERS: dict[str, tuple[Environment, str]] = {
    "trl": (TRL, "trl_sft.py"),
    "trl-best": (TRL, "trl_sft.py"),
    "llamafactory": (LLAMAFACTORY, "llamafactory_sft.py"),
}
# What would make the candidates' processes differ from a user's.
UNSET = re.compile(
    r"(ATEN|DNNL|GLIBC|GOMP|KMP|LD_PRELOAD|MALLOC|MKL|OMP|ONEDNN|PYTORCH|TORCH)", re.ASCII
)


@dataclass(frozen=True)
class Plan:
    """What all candidates train alike.

    Attributes:
        folder: temporary folder with rows.json and model_bf16; everything is written under it.
        model: folder of the base model.
        epochs: passes over the rows.
        steps: optimizer steps, or None for whole epochs.
        warmup_steps, batch_size, learning_rate: as named.
    """

    folder: Path
    model: str
    epochs: int
    steps: int | None
    warmup_steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3


def environment(folder: Path) -> dict[str, str]:
    """The same variables for every process."""
    kept = {key: value for key, value in os.environ.items() if not UNSET.match(key)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "hf"),
        "RETONE_RUNS": str(folder / "runs"),
    }


def run(command: list[str], folder: Path, log: Path, seconds: float = RUN_SECONDS) -> str:
    """stdout of a command; stderr goes to `log`. Raises PeerProblem when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(folder),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise PeerProblem(f"took more than {seconds:.0f} s") from None
    if done.returncode:
        raise PeerProblem(f"exit code {done.returncode}: {last_error(log)}")
    return done.stdout


def last_json(text: str) -> dict[str, Any]:
    """The object on the last line; tools may print before it. Raises PeerProblem."""
    last = text.strip().rpartition("\n")[2]
    try:
        found: dict[str, Any] = json.loads(last)
    except ValueError:
        raise PeerProblem(f"ended without a result: {last!r}") from None
    return found


def train(name: str, plan: Plan, number: int) -> dict[str, Any]:
    """Round `number` of a candidate: its measurements and its adapter. Raises PeerProblem."""
    start = time.monotonic()
    log = plan.folder / "logs" / f"{name}-{number}.txt"
    measured = (_retone if name in OURS else _peer)(name, plan, number, log)
    return {
        **measured,
        **rates(measured["step_seconds"], measured["step_rows"]),
        "seconds_process": time.monotonic() - start,
    }


def rates(seconds: list[float], rows: list[int]) -> dict[str, Any]:
    """Rows per second from the time and the rows of every step."""
    pairs = list(zip(seconds, rows, strict=True))
    # A run of three steps or fewer (a trial) has nothing to spare for the warm-up.
    steady = pairs[WARM_UP:] if len(pairs) > WARM_UP else pairs[-1:]
    return {
        "rows_per_s": statistics.median(count / time for time, count in steady),
        "rows_per_s_mean": sum(count for _, count in steady) / sum(time for time, _ in steady),
        "seconds_total_training": sum(seconds),
        "first_steps_s": [round(took, 4) for took in seconds[:WARM_UP]],
        "steps": len(seconds),
        "rows": sum(rows),
    }


def _peer(name: str, plan: Plan, number: int, log: Path) -> dict[str, Any]:
    installed, script = PEERS[name]
    work = plan.folder / "work" / f"{name}-{number}"
    work.mkdir(parents=True)
    adapter = plan.folder / "adapters" / f"{name}-{number}"
    job = {
        "candidate": name,
        "rows": str(plan.folder / "rows.json"),
        "model": plan.model,
        "model_bf16": str(plan.folder / "model_bf16"),
        "work": str(work),
        "adapter": str(adapter),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "warmup_steps": plan.warmup_steps,
        "seed": number,
    }
    file = work / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    out = run([str(installed.python(log)), str(HERE / script), str(file)], plan.folder, log)
    return {**last_json(out), "adapter": str(adapter)}


def _retone(name: str, plan: Plan, number: int, log: Path) -> dict[str, Any]:
    length = f"max_steps={plan.steps}" if plan.steps else f"epochs={plan.epochs}"
    sets = [
        f"train.{length}",
        "data.validation_fraction=0",  # so that it trains every row, as the others do
        "method.rank=8",
        "method.alpha=16",
        "method.dropout=0",
        f"train.batch_size={plan.batch_size}",
        f"train.learning_rate={plan.learning_rate}",
        f"train.warmup_steps={plan.warmup_steps}",
        f"train.seed={number}",
        f"train.fast={'true' if name == 'retone' else 'false'}",
    ]
    command = [sys.executable, "-m", "retone", "train", "yoda", "--name", f"{name}-{number}"]
    for item in sets:
        command += ["--set", item]
    out = last_json(run([*command, "--offline", "--json"], plan.folder, log))
    return read_run(Path(out["run"]), plan.folder)


def read_run(path: Path, folder: Path) -> dict[str, Any]:
    """What a run of retone measured, from its own files."""
    run = folder / path
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    training, manifest, resolved = (
        json.loads((run / f"{name}.json").read_text("utf-8"))
        for name in ("training", "manifest", "resolved")
    )
    recipe = resolved["recipe"]
    rows = [round(line["rows_per_s"] * line["seconds"]) for line in lines]
    return {
        "step_seconds": _differences([line["seconds"] for line in lines]),
        "step_rows": _differences(rows),
        "losses": [line["loss"] for line in lines],
        "tokens": training["tokens"],
        "positions": None,  # not written by a run
        "peak_rss_bytes": training["peak_bytes"],  # VmHWM of its process, as for the others
        "setting": {
            "weights": recipe["model"]["dtype"],
            "autocast": False,
            "attention": recipe["model"]["attention"],
            "micro_batch_size": recipe["train"]["micro_batch_size"],
            "fast": recipe["train"]["fast"],
        },
        "compared": compare_messages(run, folder / "rows.json"),
        "versions": manifest["versions"] | {"retone": manifest["retone"]},
        "adapter": str(run / "adapter"),
    }


def compare_messages(run: Path, rows: Path) -> dict[str, Any]:
    """That a run holds the conversations that the others were given (its ids are the reference)."""
    given = [row["messages"] for row in json.loads(rows.read_text("utf-8"))["train"]]
    lines = (run / "data" / "train.jsonl").read_text("utf-8").splitlines()
    held = [[_plain(turn) for turn in json.loads(line)["messages"]] for line in lines]
    same = sum(turns in given for turns in held)
    return {"rows": len(held), "same_ids": same, "same_trained": same, "first_difference": None}


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": turn["role"], "content": turn["content"]}


def _differences(values: list[Any]) -> list[Any]:
    return [after - before for before, after in zip([0, *values], values, strict=False)]
