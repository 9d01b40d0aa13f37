"""Inspecting data: seconds and memory of `retone inspect` by number of rows.

    python benchmarks/inspect_rows.py [--json] [--sizes 10000,100000,1000000]

Rows are one question and its answer each, of the lengths of prepare.py's: a load, not data. A tenth
of them is held out, so leaks are looked for in the others. Each size is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prepare import conversations, numbers, tell

SIZES = "10000,100000,1000000"
COMMAND = """
import sys
from retone.cli import main
from retone.training.loop import peak_memory
code = main(sys.argv[1:])
print(f"peak {peak_memory()}", file=sys.stderr)
sys.exit(code)
"""


def main() -> int:
    """Run every size; 0 when all ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--sizes", type=numbers, default=SIZES, help="rows, comma-separated")
    parser.add_argument("--folder", help="where the rows lie meanwhile (3 KB each)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retone-inspect-", dir=chosen.folder) as name:
        measured = {size: measure(Path(name), size) for size in chosen.sizes}
    rates = {size: found["rows_per_s"] for size, found in measured.items()}
    payload = {
        "sizes": {str(size): found for size, found in measured.items()},
        "linearity": rates[max(rates)] / rates[min(rates)],
        "setting": {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]},
    }
    if chosen.json:
        print(json.dumps(payload, allow_nan=False))
    return 0


def measure(folder: Path, size: int) -> dict[str, Any]:
    """One file of so many rows, inspected by the command line as a user would."""
    rows = folder / f"rows-{size}.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for row in conversations(size):
            question, answer = (turn["value"] for turn in row["conversations"][:2])
            file.write(json.dumps({"prompt": question, "completion": answer}) + "\n")
    environment = {**os.environ, "RETONE_RUNS": str(folder / f"runs-{size}")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "inspect", str(rows), "--json"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1):
        raise SystemExit(f"retone inspect failed: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    peak = int(done.stderr.rsplit("peak ", 1)[1])
    rows.unlink()
    found = {
        "rows": told["sources"][0]["read"],
        "seconds": seconds,
        "rows_per_s": size / seconds,
        "peak_rss_bytes": peak,
        "tokens": told["tokens"]["trained"] + told["tokens"]["masked"],
        "findings": {finding["code"]: finding["count"] for finding in told["findings"]},
    }
    tell(f"{size:,} rows: {seconds:.0f} s, {peak / 1e9:.2f} GB, {found['findings']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
