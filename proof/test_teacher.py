"""A teacher that is killed, throttled and large: resume, rate, memory, real servers, diversity."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from record import record

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from teacher_process import KEY, logged, server

KILLS, ROWS = 20, 300
AT_ONCE, LATENCY, REQUESTS = 64, 0.25, 10_000
LONG = 100_000
FOUND: dict[str, Any] = {}

pytest.importorskip("openai", reason="this proof needs the official client")


def command(address: str, folder: Path, output: str) -> list[str]:
    return [
        sys.executable, "-m", "retone", "synthesize", "lighthouse", "-o", str(folder / output),
        "--count", str(ROWS), "--endpoint", address, "--teacher", "fake", "--concurrency", "16",
    ]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "RETONE_CACHE": str(folder / "cache"), "RETONE_TEACHER_KEY": KEY}


def test_killed_and_started_again(tmp_path: Path) -> None:
    """SIGKILL at random moments: the same bytes as never killed, and nothing is paid for twice."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    logs = {folder: folder / "log.jsonl" for folder in (whole, killed)}
    for folder in logs:
        folder.mkdir()
    answering = ("--answers", "teacher_server:persona", "--latency", "0.05")
    with server(logs[whole], *answering) as address:
        subprocess.run(command(address, whole, "data.jsonl"), env=environment(whole), check=True)
    draw, kills = random.Random(7), 0
    with server(logs[killed], *answering) as address:
        told, step = command(address, killed, "data.jsonl"), len(logged(logs[whole])) // KILLS
        while kills < KILLS:
            process = subprocess.Popen(told, env=environment(killed), stderr=subprocess.DEVNULL)
            enough = len(logged(logs[killed])) + draw.randrange(1, step)
            while process.poll() is None and len(logged(logs[killed])) < enough:
                time.sleep(0.005)
            assert process.poll() is None, "it was through before"
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert not (killed / "data.jsonl").exists()
        subprocess.run(told, env=environment(killed), check=True)
    for file in whole.glob("data*"):
        if file.suffix == ".jsonl":
            one, other = (
                (folder / file.name).read_text().replace(address_of(folder), "")
                for folder in (whole, killed)
            )
            assert one == other, file.name
    sent = Counter(line["key"] for line in logged(logs[killed]))
    repeated = sum(sent.values()) - len(sent)
    FOUND["killed"] = {"rows": ROWS, "kills": kills, "requests": len(sent), "repeated": repeated}
    assert repeated <= 16 * kills


def address_of(folder: Path) -> str:
    """How the rows of a folder name their server, whose port differs."""
    line = json.loads((folder / "data.jsonl").read_text().split("\n", 1)[0])
    return str(line["teacher"])


def asked(address: str, folder: Path, count: int) -> tuple[float, int]:
    """Seconds of so many requests, and the bytes that memory grew by over the last nine tenths."""
    from retone.conversation import Message
    from retone.teacher.asking import Ask
    from retone.teacher.client import Teacher
    from retone.teacher.endpoints import OpenAIEndpoint
    from retone.teacher.limits import Meter
    from retone.teacher.store import Store

    endpoint = OpenAIEndpoint(address, "fake", key=KEY, concurrency=AT_ONCE)
    before = 0
    with Teacher(endpoint, Store(folder / "replies.sqlite3"), Meter()) as teacher:

        async def one(number: int) -> str:
            return (await teacher.ask(Ask((Message("user", f"Question {number}?"),)))).text

        started = time.monotonic()
        for done, found in enumerate(teacher.each(one, range(count)), 1):
            assert found.made
            if done == count // 10:
                before = resident()
        seconds = time.monotonic() - started
        return seconds, resident() - before


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_many_at_once(tmp_path: Path) -> None:
    """64 at once against 250 ms: the share of the rate that would be ideal."""
    shares = []
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with server(folder / "log.jsonl", "--latency", str(LATENCY)) as address:
            seconds, _ = asked(address, folder, REQUESTS)
        shares.append(REQUESTS / AT_ONCE * LATENCY / seconds)
    FOUND["rate"] = {"at_once": AT_ONCE, "latency_s": LATENCY, "requests": REQUESTS,
                     "share_of_ideal": sorted(shares)[1], "runs": shares}  # fmt: skip


def test_memory_stays_flat(tmp_path: Path) -> None:
    with server(tmp_path / "log.jsonl") as address:
        seconds, grown = asked(address, tmp_path, LONG)
    FOUND["long"] = {"requests": LONG, "seconds": seconds, "grown_bytes": grown}
    assert grown < 60e6


def test_it_is_recorded() -> None:
    record("teacher", FOUND)
    assert FOUND["rate"]["share_of_ideal"] >= 0.9
