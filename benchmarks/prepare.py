"""Preparing data: rows per second and memory of retone beside `datasets.map`, by number of rows.

    python benchmarks/prepare.py [--json] [--sizes 10000,100000,1000000] [--peer-sizes 10000]

Rows are conversations of ShareGPT's lengths, made up on the fly from the bundled data's words: a
load, not data. Each measurement is a process of its own; README.md beside this file says what is
alike and what is not. A peer that cannot be installed or fails is "not_run" with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers.candidates import TRL, last_json, run
from peers.venvs import HERE, PeerProblem

SIZES = "10000,100000,1000000"
PEER_SIZES = "10000,100000"  # its rate does not depend on the number of rows
SEED = 0
REPEATED, VARIED = 0.02, 0.03  # shares of rows that equal, and that nearly equal, an earlier one
SECONDS = 4 * 3600  # for one measurement
# Exchanges and words of ShareGPT conversations: a few exchanges, answers three times as long as
# questions, both with a long tail (see the statistics in arXiv:2309.06180, section 6.1).
MORE_EXCHANGES = 0.6
QUESTION, ANSWER = (3.3, 1.0, 400), (4.6, 0.8, 800)  # log-normal mean and sigma, most words
Peers = dict[str, int]  # candidate -> processes


def main() -> int:
    """Run everything; 0 when retone itself ran."""
    chosen = arguments()
    if chosen.ours:
        print(json.dumps(measure_ours(*map(Path, chosen.ours))))
        return 0
    peers: Peers = {"datasets": 1, "datasets-parallel": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="retone-prepare-", dir=chosen.folder) as name:
        measured = {
            size: measure(Path(name), size, peers if size in chosen.peer_sizes else {})
            for size in chosen.sizes
        }
    payload = summary(measured)
    for line in table(payload):
        tell(line)
    if chosen.json:
        print(json.dumps(payload, allow_nan=False))
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--sizes", type=numbers, default=SIZES, help="rows, comma-separated")
    parser.add_argument("--peer-sizes", type=numbers, default=PEER_SIZES, help="may be empty")
    parser.add_argument("--folder", help="where the rows lie meanwhile (15 KB each)")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)  # a process of our own
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """`10,20` -> [10, 20]."""
    return [int(part) for part in text.split(",") if part]


def tell(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def conversations(count: int) -> Iterator[dict[str, Any]]:
    """ShareGPT-shaped rows, the same for the same count; some repeat one of the last 1,000."""
    from retone.data.sources import source_path

    files = sorted(source_path("bundled:").rglob("*.*"))
    words = " ".join(file.read_text(encoding="utf-8") for file in files).split()
    random_ = random.Random(SEED)
    recent: list[list[dict[str, str]]] = []
    for number in range(count):
        draw = random_.random()
        if recent and draw < REPEATED + VARIED:
            turns = random_.choice(recent)
            if draw < VARIED:
                last = f"{turns[-1]['value']} {random_.choice(words)}"
                turns = [*turns[:-1], {"from": "gpt", "value": last}]
        else:
            turns = []
            while not turns or random_.random() < MORE_EXCHANGES:
                for speaker, (mean, sigma, most) in (("human", QUESTION), ("gpt", ANSWER)):
                    length = min(most, 1 + int(random_.lognormvariate(mean, sigma)))
                    turns.append(
                        {"from": speaker, "value": " ".join(random_.choices(words, k=length))}
                    )
        recent = [*recent[-999:], turns] if number % 10 == 0 else recent
        yield {"id": f"row-{number}", "conversations": turns}


def write_rows(path: Path, count: int) -> None:
    """A JSONL file of them."""
    with path.open("w", encoding="utf-8") as file:
        for row in conversations(count):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure_ours(rows: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Read, check, deduplicate, encode, split and store; the seconds of each part as well.

    No peer looks for faults, so the seconds that this takes are counted apart too.
    """
    from retone.chat_template import ChatTemplate
    from retone.config import DataSection
    from retone.data import collecting, preparing
    from retone.models.loading import load_tokenizer
    from retone.models.locate import locate
    from retone.training.loop import peak_memory

    base = locate("smollm2-135m-instruct")
    template = ChatTemplate(load_tokenizer(base), name=base.name)
    parts: dict[str, float] = {}
    last = start = time.perf_counter()

    def tick(what: str, done: int, total: int, detail: str) -> None:
        nonlocal last
        now = time.perf_counter()
        parts[what] = parts.get(what, 0.0) + now - last
        last = now

    checking: list[float] = []
    collecting.row_faults = timed(collecting.row_faults, checking)
    preparing.corpus_findings = timed(preparing.corpus_findings, checking)
    out.mkdir()
    data = preparing.prepare_data(
        DataSection(train=str(rows)), template, out, limit=8192, seed=SEED, tick=tick
    )
    seconds = time.perf_counter() - start
    parts["writing"] = seconds - sum(parts.values())
    train = data.rows("train")
    source = data.ledger["sources"][0]
    return {
        "rows": source["read"],
        "seconds": seconds,
        "checking_s": sum(checking),
        "peak_rss_bytes": peak_memory(),
        "parts_s": {name: round(took, 2) for name, took in parts.items()},
        "dropped": source["dropped"],
        "tokens": int(train.lengths.sum()),
        "first": [(row.row, len(row.input_ids), row.trained) for row in train[:100]],
        "model": str(base.path),
    }


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function; each of its calls adds the seconds it took to the list."""

    def measured(*arguments: Any) -> Any:
        start = time.perf_counter()
        found = function(*arguments)
        seconds.append(time.perf_counter() - start)
        return found

    return measured


def measure(folder: Path, size: int, peers: Peers) -> dict[str, dict[str, Any]]:
    """Every candidate on the same rows, one after another."""
    rows = folder / f"rows-{size}.jsonl"
    write_rows(rows, size)
    tell(f"{size:,} rows, {rows.stat().st_size / 1e6:.0f} MB")
    command = [sys.executable, str(Path(__file__).resolve()), "--ours", str(rows)]
    command += [str(folder), str(folder / f"ours-{size}")]
    found = {"retone": rated(last_json(run(command, folder, folder / "log.txt", SECONDS)))}
    ours = found["retone"]
    tell(f"  retone: {ours['rows_per_s']:.0f} rows/s, {ours['checking_s']:.1f} s of checking")
    for name, processes in peers.items():
        work = folder / f"{name}-{size}"
        log = folder / f"log-{name}.txt"
        script = [str(HERE / "datasets_map.py"), str(rows), found["retone"]["model"]]
        try:
            python = str(TRL.python(log))
            command = [python, *script, str(processes), str(work)]
            found[name] = rated(last_json(run(command, folder, log, SECONDS)))
            tell(f"  {name}: {found[name]['rows_per_s']:.0f} rows/s")
        except (PeerProblem, OSError) as problem:
            found[name] = {"not_run": str(problem).replace(str(folder), "~")[:300]}
            tell(f"  {name}: not run, {found[name]['not_run']}")
    rows.unlink()
    return found


def rated(found: dict[str, Any]) -> dict[str, Any]:
    """The measurement with its rows per second, and with those of the work that all do."""
    alike = found["seconds"] - found.get("checking_s", 0.0)
    return {
        **found,
        "rows_per_s": found["rows"] / found["seconds"],
        "rows_per_s_unchecked": found["rows"] / alike,
    }


def summary(measured: dict[int, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Measurements by size, ratios to the quickest peer, and how the rate grows with size."""
    rates = {size: by["retone"]["rows_per_s"] for size, by in measured.items()}
    ratios: dict[str, Any] = {}
    for size, by in measured.items():
        peers = {n: f for n, f in by.items() if n != "retone" and "not_run" not in f}
        for name, peer in peers.items():
            ratios.setdefault(str(size), {})[name] = {
                "with_checks": rates[size] / peer["rows_per_s"],
                "without": by["retone"]["rows_per_s_unchecked"] / peer["rows_per_s"],
            }
        for peer in peers.values():
            peer["same_tokens"] = same_tokens(by["retone"]["first"], peer)
    for by in measured.values():
        by["retone"].pop("first")
        by["retone"].pop("model")
        for found in by.values():
            found.pop("first_tokens", None)
            found.pop("first_trained", None)
    return {
        "sizes": {str(size): by for size, by in measured.items()},
        "ratio": ratios,
        "linearity": rates[max(rates)] / rates[min(rates)],
        "peak_rss_bytes": max(by["retone"]["peak_rss_bytes"] for by in measured.values()),
        "setting": {
            "repeated": REPEATED,
            "varied": VARIED,
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        },
    }


def same_tokens(first: list[tuple[int, int, int]], peer: dict[str, Any]) -> dict[str, int]:
    """Of the first rows that both encoded, how many have as many tokens, and trained tokens."""
    pairs = list(zip(peer["first_tokens"], peer["first_trained"], strict=True))
    shared = [(pairs[row - 1], (ids, trained)) for row, ids, trained in first if row <= len(pairs)]
    return {"rows": len(shared), "same": sum(theirs == ours for theirs, ours in shared)}


def table(payload: dict[str, Any]) -> Iterator[str]:
    """The figures for people."""
    yield f"{'rows':>9}  {'candidate':18}{'rows/s':>9}{'peak GB':>9}{'ratio':>8}{'unchecked':>11}"
    for size, by in payload["sizes"].items():
        for name, found in by.items():
            if "not_run" in found:
                yield f"{size:>9}  {name:18} not run"
                continue
            ratio = payload["ratio"].get(size, {}).get(name)
            yield (
                f"{size:>9}  {name:18}{found['rows_per_s']:9.0f}"
                f"{(found['peak_rss_bytes'] or 0) / 1e9:9.2f}"
                + ("" if ratio is None else f"{ratio['with_checks']:8.2f}{ratio['without']:11.2f}")
            )
    yield f"rate at the largest size against the smallest: {payload['linearity']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
