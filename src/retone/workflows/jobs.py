"""Training jobs that the web app starts: a process of its own each, one at a time.

    runs/.jobs/<name>/ job.json recipe.toml log.txt and the data

A job goes on when the page or the server is closed, and is found again by its files.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import filelock
import psutil

from retone.errors import InputError
from retone.inference.desk import Choices, JobState
from retone.models.locate import model_table
from retone.planning import probe_machine
from retone.recipe_file import load_recipe, toml_value
from retone.run_dir import (
    Run,
    check_name,
    read_json,
    read_jsonl,
    runs_root,
    write_json,
    write_whole,
)

SAMPLES = 3  # questions that are answered at each evaluation
SPARE_BYTES = 2e9  # beside the weights: activations, optimizer, the program itself
CURVE_POINTS = 400
METHODS = {
    "lora": ("LoRA on all linear layers", {"kind": "lora"}, "none"),
    "qlora": ("LoRA, base in 4 bits (less memory)", {"kind": "lora"}, "nf4"),
    "full": ("All weights", {"kind": "full"}, "none"),
    "ia3": ("IA3 (a few thousand numbers)", {"kind": "ia3"}, "none"),
}
# Bytes of memory a weight takes in training: bf16 frozen, 4 bits frozen, float32 with Adam's state.
BYTES = {"lora": 2.2, "ia3": 2.2, "qlora": 0.8, "full": 16.0}

_children: list[subprocess.Popen[bytes]] = []  # asked now and then, or they would stay as zombies


def choices() -> Choices:
    """Base models and methods that fit into this machine's memory, by a rule of thumb."""
    room, known = _room(), model_table()
    usable = [name for name in METHODS if name != "qlora" or find_spec("bitsandbytes")]
    leanest = min(BYTES[name] for name in usable)
    bases = [
        (name, f"{name} ({row.parameters / 1e6:,.0f}M)")
        for name, row in known.items()
        if row.parameters * leanest < room
    ]
    smallest = min(row.parameters for row in known.values())
    methods = [(name, METHODS[name][0]) for name in usable if smallest * BYTES[name] < room]
    return Choices(bases, methods)


def _room() -> float:
    """Bytes of memory for the weights and what training keeps beside each."""
    return probe_machine().memory_bytes - SPARE_BYTES


def _require_room(base: str, method: str) -> None:
    """InputError where a model of the table is too large for this machine and method."""
    row = model_table().get(base)
    needed = row.parameters * BYTES[method] if row else 0.0
    if needed >= _room():
        lean = [name for name, _ in choices().methods if BYTES[name] < BYTES[method]]
        raise InputError(
            "the base model does not fit into memory with this method",
            f"{base} with {method} takes about {needed / 1e9:.0f} GB, "
            f"there is room for {max(0.0, _room()) / 1e9:.0f}",
            f"take a smaller model{' or ' + ', '.join(lean) if lean else ''}",
            "no-room",
        )


def data_values(path: str, prompt: str, answer: str) -> dict[str, Any]:
    """The section [data] for a file, with the columns that were named."""
    columns = {"prompt": prompt.strip(), "completion": answer.strip()}
    named = {part: column for part, column in columns.items() if column}
    return {"train": path, **({"columns": named} if named else {})}


def start(
    path: str, base: str, method: str, prompt: str, answer: str, name: str, epochs: float | None
) -> JobState:
    """Start a job; arguments as for `Desk.start`.

    Raises InputError: a job is running, the name is none, the model is too large, or the recipe is
    wrong.
    """
    check_name(name)
    _require_room(base, method)
    root = runs_root() / ".jobs"
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / ".lock"):
        if state().status == "running":
            raise InputError(
                "a training job is running already", state().told, "wait for it, or stop it",
                "job-running",
            )  # fmt: skip
        name = _free_name(name)
        folder = root / name
        folder.mkdir()
        data = folder / Path(path).name
        shutil.copyfile(path, data)
        _, fields, quantization = METHODS[method]
        recipe = {
            "model": {"name": base, "quantization": quantization},
            "data": data_values(data.name, prompt, answer),
            "method": fields,
            "train": {"sample_answers": SAMPLES, **({"epochs": epochs} if epochs else {})},
        }
        write_whole(folder / "recipe.toml", _toml(recipe))
        try:
            load_recipe(str(folder / "recipe.toml"))
        except InputError:
            shutil.rmtree(folder)
            raise
        _launch(folder, name)
    return state()


def stop() -> JobState:
    """Stop the job at its next step, after a checkpoint; the same command resumes it."""
    job = _newest()
    if job and (process := _process(job)):
        write_json(job["folder"] / "job.json", {**_stored(job), "stopped": True})
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs([process], timeout=60)
    return state()


def state() -> JobState:
    """The newest job as its files and its process tell."""
    for child in _children:
        child.poll()
    job = _newest()
    if job is None:
        return JobState(told="Nothing was trained from this page yet.")
    run = Run(runs_root() / job["name"])
    alive = _process(job) is not None
    lines = read_jsonl(run.metrics) if run.metrics.is_file() else []
    status = run.status if run.manifest.is_file() else "none"
    facts: dict[str, Any] = {
        "name": job["name"],
        "curve": list(_curve(lines)),
        "samples": list(reversed(read_jsonl(run.samples))) if run.samples.is_file() else [],
    }
    if status == "finished":
        told = f"{job['name']} is finished: {read_json(run.scores)['verdict']}"
        return JobState(status="finished", told=told, share=1.0, **facts)
    if not alive:
        if job["stopped"]:
            told = f"{job['name']} was stopped; retone run {job['folder']}/recipe.toml goes on"
            return JobState(status="stopped", told=told, **facts)
        return JobState(status="failed", told=f"{job['name']} failed: {_last_words(job)}", **facts)
    share, told = _progress(status, lines, job)
    return JobState(status="running", told=f"{job['name']}: {told}", share=share, **facts)


def _progress(status: str, lines: list[Any], job: dict[str, Any]) -> tuple[float, str]:
    """The share of the steps done, and what is going on."""
    if status == "trained":
        return 1.0, "trained; base and tuned model answer the held-out rows"
    if not lines:
        return 0.0, f"reading the data and the model ({time.time() - job['started']:.0f} s)"
    last = lines[-1]
    total = last["total_steps"] or last["step"]
    left = last["seconds"] / last["step"] * (total - last["step"])
    told = f"step {last['step']} of {total}, loss {last['loss']:.2f}, {left:.0f} s left"
    return last["step"] / total, told


def _curve(lines: list[Any]) -> Iterator[tuple[int, str, float]]:
    """Points of both losses, thinned out evenly."""
    every = max(1, len(lines) // CURVE_POINTS)
    for line in lines[::every]:
        yield line["step"], "training", line["loss"]
    for line in lines:
        if "eval_loss" in line:
            yield line["step"], "validation", line["eval_loss"]


def _launch(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "retone", "run", str(folder / "recipe.toml")]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--name", name, "--fresh"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    _children.append(process)
    # The moment of its start tells the process from a later one with the same number.
    born = psutil.Process(process.pid).create_time()
    write_json(
        folder / "job.json",
        {"name": name, "pid": process.pid, "born": born, "started": time.time(), "stopped": False},
    )


def _newest() -> dict[str, Any] | None:
    jobs = [
        {**read_json(file), "folder": file.parent}
        for file in (runs_root() / ".jobs").glob("*/job.json")
    ]
    return max(jobs, key=lambda job: float(job["started"]), default=None)


def _stored(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if key != "folder"}


def _process(job: dict[str, Any]) -> psutil.Process | None:
    """The job's process while it runs."""
    try:
        process = psutil.Process(job["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE
        return process if alive and abs(process.create_time() - job["born"]) < 1 else None
    except psutil.Error:
        return None


def _last_words(job: dict[str, Any]) -> str:
    """The error that the process printed last."""
    lines = (job["folder"] / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("error:", "found:", "to do:"))][-3:]
    return "; ".join(told or [line for line in lines if line.strip()][-1:]) or "it said nothing"


def _free_name(name: str) -> str:
    """The name, or one with a number, that neither a run nor a job has."""
    taken, number = name, 1
    while (runs_root() / taken).exists() or (runs_root() / ".jobs" / taken).exists():
        number += 1
        taken = f"{name}-{number}"
    return taken


def _toml(recipe: dict[str, dict[str, Any]]) -> str:
    """The recipe as TOML."""
    lines = []
    for section, fields in recipe.items():
        lines += [
            f"[{section}]",
            *(f"{name} = {toml_value(value)}" for name, value in fields.items()),
        ]
    return "\n".join(lines) + "\n"
