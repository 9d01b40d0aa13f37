"""One LoRA epoch on this CPU: retone beside its plain twin and beside other trainers.

    python benchmarks/train_cpu.py [--json] [--rounds 1] [--steps N] [--peers trl,llamafactory]

Same model, rows, adapters, batch, steps and learning rate for all; README.md beside this file says
what differs. Each run is a process of its own, candidates take turns, medians are over the rounds,
and one judge measures every adapter's loss on the test rows. A peer that cannot be installed or
fails is "not_run" with the reason.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.candidates import OURS, PEERS, WARM_UP, Plan, last_json, run, train
from peers.venvs import HERE, PeerProblem

QUIET = 0.5  # load average above which other work disturbs the figures
MEDIANS = (
    "rows_per_s",
    "rows_per_s_mean",
    "peak_rss_bytes",
    "seconds_total_training",
    "seconds_process",
    "test_loss",
)
Measured = dict[str, list[dict[str, Any]]]


def main() -> int:
    """Run everything; 0 when retone itself ran."""
    chosen = arguments()
    tell(f"load average {load():.2f}" + ("" if load() <= QUIET else ": NOT QUIET, expect noise"))
    with tempfile.TemporaryDirectory(prefix="retone-bench-") as name:
        folder = Path(name)
        started = load()
        before = rates(folder)
        plan, content = prepare(folder, chosen.epochs, chosen.steps)
        measured, reasons = take_turns(plan, chosen.rounds, chosen.peers)
        base = judge(plan, measured)
        after = rates(folder)
        payload = {
            **summary(measured, reasons, chosen.peers),
            "roof": roof(before, after),
            "setting": setting(plan, content, chosen.rounds, before, started, base),
        }
    for line in table(payload):
        tell(line)
    if chosen.json:
        print(json.dumps(payload, allow_nan=False))
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=1, help="trainings of each candidate")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the rows")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of whole epochs")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated, may be empty")
    chosen = parser.parse_args()
    chosen.peers = [name for name in chosen.peers.split(",") if name]
    if unknown := set(chosen.peers) - set(PEERS):
        parser.error(f"unknown peer {sorted(unknown)[0]}; known: {', '.join(PEERS)}")
    return chosen


def tell(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def load() -> float:
    """Load average of the last minute; 0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def rates(folder: Path) -> dict[str, Any]:
    """What the machine is and how fast it multiplies now."""
    command = [sys.executable, str(HERE / "prepare.py"), "rates"]
    return last_json(run(command, folder, folder / "logs" / "prepare.txt"))


def prepare(folder: Path, epochs: int, steps: int | None) -> tuple[Plan, dict[str, Any]]:
    """The rows file and the plan that all share."""
    command = [sys.executable, str(HERE / "prepare.py"), "rows", str(folder)]
    run(command, folder, folder / "logs" / "prepare.txt")
    content: dict[str, Any] = json.loads((folder / "rows.json").read_text("utf-8"))
    total = steps or epochs * math.ceil(len(content["train"]) / Plan.batch_size)
    warmup = math.ceil(0.05 * total)  # retone's default; all get the same number
    return Plan(folder, content["model"]["path"], epochs, steps, warmup), content


def take_turns(plan: Plan, rounds: int, peers: list[str]) -> tuple[Measured, dict[str, str]]:
    """Train A B C A B C ...; a peer that fails once is out, with its reason."""
    measured: Measured = {name: [] for name in (*OURS, *peers)}
    reasons: dict[str, str] = {}
    install(peers, plan, reasons)
    for number in range(rounds):
        for name in measured:
            if name in reasons:
                continue
            try:
                found = train(name, plan, number)
            except PeerProblem as problem:
                if name in OURS:
                    raise SystemExit(f"{name} failed: {problem}") from None
                reasons[name] = clean(str(problem), plan.folder)
                tell(f"round {number + 1} of {rounds}  {name}: not run, {reasons[name]}")
                continue
            if name in OURS:
                require_all_rows(name, found, plan)
            measured[name].append(found)
            tell(progress(number, rounds, name, found, measured, reasons))
    return measured, reasons


def require_all_rows(name: str, found: dict[str, Any], plan: Plan) -> None:
    """Stop before an hour is spent on a comparison of different rows; a trial only warns."""
    rows = json.loads((plan.folder / "rows.json").read_text("utf-8"))["train"]
    held = found["compared"]
    if held["rows"] == held["same_ids"] == len(rows):
        return
    told = f"{name} holds {held['same_ids']} of the {len(rows)} rows that the peers train"
    if plan.steps is None:
        raise SystemExit(told)
    tell(told)


def install(peers: list[str], plan: Plan, reasons: dict[str, str]) -> None:
    """Make the peers' environments before anything is timed."""
    for name in peers:
        environment, _ = PEERS[name]
        tell(f"environment of {name}: {environment.pins}")
        try:
            environment.python(plan.folder / f"install-{environment.pins}")
        except (PeerProblem, OSError) as problem:
            reasons[name] = clean(str(problem), plan.folder)
            tell(f"{name}: not run, {reasons[name]}")


def clean(text: str, folder: Path) -> str:
    """A reason without addresses and paths of this machine."""
    text = re.sub(r"\w+://\S+", "(address)", text)
    for path in (folder, HERE.parents[1], Path.home()):
        text = text.replace(str(path), "~")
    return text[:300]


def progress(
    number: int,
    rounds: int,
    name: str,
    found: dict[str, Any],
    measured: Measured,
    reasons: dict[str, str],
) -> str:
    """The line after a run, with the time that the others should still take."""
    names = [other for other in measured if other not in reasons]
    took = {other: runs[-1]["seconds_process"] for other, runs in measured.items() if runs}
    guess = statistics.mean(took.values())
    left = sum((rounds - len(measured[other])) * took.get(other, guess) for other in names)
    return (
        f"round {number + 1} of {rounds}  {name}: {found['rows_per_s']:.2f} rows/s, "
        f"{found['peak_rss_bytes'] / 1e9:.2f} GB, {found['steps']} steps, "
        f"loss {found['losses'][0]:.2f} -> {found['losses'][-1]:.2f}, "
        f"{found['seconds_process']:.0f} s; about {left / 60:.0f} min left"
    )


def judge(plan: Plan, measured: Measured) -> float:
    """Put `test_loss` into every measurement; the base model's loss comes back."""
    runs = [found for runs in measured.values() for found in runs]
    tell(f"judging {len(runs)} adapters on the test rows")
    script, rows = HERE / "judge.py", plan.folder / "rows.json"
    command = [sys.executable, str(script), str(rows), *(found["adapter"] for found in runs)]
    losses = last_json(run(command, plan.folder, plan.folder / "logs" / "judge.txt"))
    for found in runs:
        found["test_loss"] = losses[found.pop("adapter")]
    return float(losses["base"])


def summary(measured: Measured, reasons: dict[str, str], peers: list[str]) -> dict[str, Any]:
    """Medians of every candidate, and retone's ratios to the best peer in each figure."""
    found = {name: merged(runs) for name, runs in measured.items() if runs and name not in reasons}
    rivals = [found[name] for name in peers if name in found]
    ours = found["retone"]

    def ratio(field: str, best: Any) -> float | None:
        return ours[field] / best(other[field] for other in rivals) if rivals else None

    return {
        "ratio": {
            "rows_per_s": ratio("rows_per_s", max),
            "peak_memory": ratio("peak_rss_bytes", min),
            "test_loss": ratio("test_loss", min),
        },
        "peers": {name: found.get(name) or {"not_run": reasons[name]} for name in peers},
        "retone": ours,
        "retone-plain": found["retone-plain"],
    }


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of one candidate: medians, every round's figures, the rest from the last round."""
    last = runs[-1]
    kept = ("steps", "rows", "tokens", "positions", "compared", "setting", "versions")
    return {
        **{field: statistics.median(found[field] for found in runs) for field in MEDIANS},
        **{field: last[field] for field in kept},
        "first_steps_s": [found["first_steps_s"] for found in runs],
        "losses": [[round(loss, 4) for loss in found["losses"]] for found in runs],
        "step_seconds": [[round(took, 4) for took in found["step_seconds"]] for found in runs],
        "rounds": [{field: found[field] for field in MEDIANS} for found in runs],
    }


def roof(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The best matmul rate seen of each type, and all that were measured."""
    tflops = [before["tflops"], after["tflops"]]
    best = {
        kind: max(rate for part in tflops for key, rate in part.items() if key.startswith(kind))
        for kind in ("bf16", "fp32")
    }
    return {
        **{f"{kind}_tflops": rate for kind, rate in best.items()},
        "before": before["tflops"],
        "after": after["tflops"],
    }


def setting(
    plan: Plan,
    content: dict[str, Any],
    rounds: int,
    machine: dict[str, Any],
    started: float,
    base_loss: float,
) -> dict[str, Any]:
    """Everything that all candidates share, and the machine."""
    return {
        "model": {key: content["model"][key] for key in ("name", "sha256", "note")},
        "data_sha256": content["data_sha256"],
        "train_rows": len(content["train"]),
        "test_rows": len(content["test"]),
        "longest_row": max(len(row["ids"]) for row in content["train"]),
        "lora": {"r": 8, "alpha": 16, "dropout": 0, "targets": "all linear layers"},
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "schedule": "linear",
        "warmup_steps": plan.warmup_steps,
        "epochs": None if plan.steps else plan.epochs,
        "max_steps": plan.steps,
        "rounds": rounds,
        "steps_left_out": WARM_UP,
        "base_test_loss": base_loss,
        "judge": "transformers and peft in fp32, mean nats per answer token, end token included",
        "load_average_at_start": started,
        "quiet": started <= QUIET,
        **{key: machine[key] for key in ("cpu", "cores", "memory_bytes", "threads", "versions")},
    }


def table(payload: dict[str, Any]) -> list[str]:
    """The result for people."""
    shared, roof_, ratio = payload["setting"], payload["roof"], payload["ratio"]
    lines = [
        f"{shared['cpu']}, {shared['threads']} threads, load {shared['load_average_at_start']:.2f}",
        f"matmul bf16 {roof_['bf16_tflops']:.2f}, fp32 {roof_['fp32_tflops']:.2f} TFLOP/s; "
        f"test loss of the base model {shared['base_test_loss']:.3f}",
        f"{'':14}{'rows/s':>8}{'(mean)':>8}{'peak GB':>9}{'train s':>9}{'test loss':>11}",
    ]
    ours = {name: payload[name] for name in OURS}
    for name, found in (ours | payload["peers"]).items():
        if "not_run" in found:
            lines.append(f"{name:14}not run: {found['not_run']}")
            continue
        lines.append(
            f"{name:14}{found['rows_per_s']:8.2f}{found['rows_per_s_mean']:8.2f}"
            f"{found['peak_rss_bytes'] / 1e9:9.2f}{found['seconds_total_training']:9.1f}"
            f"{found['test_loss']:11.4f}"
        )
    if ratio["rows_per_s"] is not None:
        lines.append("retone / best peer: " + ", ".join(f"{k} {v:.2f}" for k, v in ratio.items()))
    return lines


if __name__ == "__main__":
    sys.exit(main())
