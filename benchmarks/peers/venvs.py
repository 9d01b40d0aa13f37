"""An environment of its own for each peer, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 1800  # for one call of pip


class PeerProblem(Exception):
    """A peer cannot be installed or fails; the text says why."""


@dataclass(frozen=True)
class Environment:
    """What is installed.

    Attributes:
        pins: file of exact versions; its torch is installed first, so that pip takes the build
            that it finds first (the CPU's, where a folder of wheels offers one).
        bare: packages installed last and without their own requirements.
    """

    pins: str
    bare: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies: named by everything that goes into it."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        parts = [(HERE / self.pins).read_text(encoding="utf-8"), *self.bare, sys.version]
        return cache / "retone-bench" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def python(self, log: Path) -> Path:
        """Its interpreter, after it was made if need be. Raises PeerProblem."""
        done = self.folder / ".complete"
        python = self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        if done.is_file():
            return python
        shutil.rmtree(self.folder, ignore_errors=True)
        venv.create(self.folder, with_pip=True)
        pins = HERE / self.pins
        torch = [line for line in pins.read_text("utf-8").splitlines() if line.startswith("torch=")]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        steps = [torch, ["--requirement", str(pins)]]
        steps += [["--no-deps", *self.bare]] if self.bare else []
        for step in steps:
            _run_pip([*pip, *step], log)
        done.touch()
        return python


def _run_pip(command: list[str], log: Path) -> None:
    with log.open("a", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=file, check=False, timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            raise PeerProblem(f"its installation took more than {SECONDS} s") from None
    if code:
        raise PeerProblem(f"cannot be installed: {last_error(log)}")


def last_error(log: Path) -> str:
    """The last line of a log that reads like an error, else its last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if "error" in line.lower() and not line.startswith("File ")]
    return (errors or lines or ["no output"])[-1]
