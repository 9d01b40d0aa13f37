"""A short real tune and a real server over it, for the proofs of the API and of the web app."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

STEPS = 40  # enough to hear the tone
NAME = "yoda"
MOST_STARTING_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """A running `retone serve`."""

    address: str
    process: subprocess.Popen[bytes]

    def peak_bytes(self) -> int:
        """Most memory it has held (VmHWM)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def connections(self) -> list[str]:
        """Addresses outside this machine that it or its children are connected to."""
        own = psutil.Process(self.process.pid)
        found = [one for each in (own, *own.children(recursive=True))
                 for one in each.net_connections("inet") if one.raddr]  # fmt: skip
        return [one.raddr.ip for one in found if not one.raddr.ip.startswith("127.")]


def retone(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of retone in a folder; AssertionError with what it said where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "retone", *arguments], cwd=folder, capture_output=True, text=True,
        check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def short_run(folder: Path) -> None:
    """Tune the default model on the bundled Yoda rows for a few steps."""
    settings = ["train.epochs=null", f"train.max_steps={STEPS}", "evaluate.limit=8"]
    flags = [word for setting in settings for word in ("--set", setting)]
    retone(folder, "run", "yoda", "--name", NAME, *flags)


@contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A server on a free port of this machine; stopped when the block ends."""
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "retone", "serve", NAME, "--port", "0", "--offline", *arguments],
            cwd=folder, stdout=file, stderr=file, env={**os.environ, **environment},
        )  # fmt: skip
    try:
        yield Server(_address(log, process), process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The address that a server tells when it is ready; AssertionError where it never does."""
    until = time.monotonic() + MOST_STARTING_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("API: "):
                return line.split()[1].removesuffix("/v1")
        time.sleep(0.2)
    raise AssertionError(f"the server did not start: {log.read_text()}")
