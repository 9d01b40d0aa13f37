"""`make bench`: runs inspect_rows.py and records its JSON. No figure of time is asserted here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from test_train_cpu import record

HERE = Path(__file__).parent
ARGUMENTS = shlex.split(os.environ.get("RETONE_INSPECT_ARGS", ""))
MOST_BYTES = 1.5e9  # of memory, for 100,000 rows


@pytest.mark.timeout(2 * 3600)
def test_inspect_rows(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "inspect_rows.py"), "--json", *ARGUMENTS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    payload = json.loads(done.stdout)
    record("inspect_rows", payload, tmp_path if ARGUMENTS else HERE / "results")
    for size, found in payload["sizes"].items():
        assert found["rows"] == int(size)
        assert found["findings"]["near-duplicate"] > 0  # planted
        if int(size) <= 100_000:
            assert found["peak_rss_bytes"] < MOST_BYTES
