"""A fake teacher in a process of its own (teacher_server.py), for the tests of its client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).with_name("teacher_server.py")
KEY = "sk-planted-0123456789"


@contextmanager
def server(log: Path, *arguments: str) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(log), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def logged(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]
