"""`retone doctor`: what this machine has, what is missing, the command that mends it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import __version__, console
from retone.config import ModelSection
from retone.errors import RetoneError
from retone.models.locate import cache_dir, locate
from retone.planning import Machine, probe_machine
from retone.run_dir import runs_root

NEEDED_BYTES = 3e9  # model, conversion and one run


@dataclass(frozen=True)
class Check:
    """One thing looked at; `mend` is empty where nothing is missing."""

    name: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything looked at."""

    machine: Machine
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """True where nothing is missing."""
        return not any(check.mend for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The object of `retone doctor --json`."""
        checks = [asdict(check) for check in self.checks]
        return {"ok": self.ok, "machine": asdict(self.machine), "checks": checks}

    def show(self) -> None:
        """Print one line per check, and what mends those that fail."""
        to = console.out()
        for check in self.checks:
            mark = "missing" if check.mend else "ok"
            to.print(f"{mark:8}{check.name:12}{escape(check.found)}", soft_wrap=True)
            if check.mend:
                to.print(f"{'':20}to do: {escape(check.mend)}", style="bold", soft_wrap=True)


def doctor(*, fetch: bool = False, offline: bool = False) -> Diagnosis:
    """Look at the machine; `fetch` also gets the default model so that later work is offline."""
    machine = probe_machine()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "transformers", "peft", "accelerate")
    )
    checks = [
        Check("python", sys.version.split()[0]),
        Check("retone", f"{__version__} with {versions}"),
        _device(machine),
        _memory(machine),
        _disk(),
        _model(fetch=fetch, offline=offline),
    ]
    return Diagnosis(machine, checks)


def _device(machine: Machine) -> Check:
    if machine.device != "cpu":
        return Check("device", f"{machine.device}: {machine.name}")
    rates = f"bf16 {machine.bf16_tflops:.2f}, fp32 {machine.fp32_tflops:.2f} TFLOP/s measured"
    found = f"cpu: {machine.name}, {machine.cores} cores, {rates}"
    if shutil.which("nvidia-smi"):
        return Check(
            "device",
            f"{found}; there is an NVIDIA driver, but this torch has no CUDA",
            "pip install --force-reinstall torch   (the CUDA build)",
        )
    return Check("device", found)


def _memory(machine: Machine) -> Check:
    found = f"{machine.memory_bytes / 1e9:.0f} GB"
    return Check("memory", found, "" if machine.memory_bytes > 3e9 else "4 GB are needed to train")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free > NEEDED_BYTES
    return Check(
        "disk",
        f"{free / 1e9:.0f} GB free for {runs_root()}, cache in {cache_dir()}",
        "" if enough else f"make room: {NEEDED_BYTES / 1e9:.0f} GB are needed",
    )


def _model(*, fetch: bool, offline: bool) -> Check:
    name = ModelSection().name
    try:
        with console.ticker() as tick:
            base = locate(name, offline=offline or not fetch, progress=tick)
    except RetoneError as error:
        return Check("model", f"{name}: {error.problem}", error.remedy)
    return Check("model", f"{name} ({base.origin}, sha256 {base.sha256[:12]})")
