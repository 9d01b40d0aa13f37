"""`make bench`: runs prepare.py and records its JSON. No figure of time is asserted here."""

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
ARGUMENTS = shlex.split(os.environ.get("RETONE_PREPARE_ARGS", ""))
MOST_BYTES = 2e9  # of memory, at any number of rows


@pytest.mark.timeout(8 * 3600)
def test_prepare(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "prepare.py"), "--json", *ARGUMENTS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    payload = json.loads(done.stdout)
    record("prepare", payload, tmp_path if ARGUMENTS else HERE / "results")

    assert payload["peak_rss_bytes"] < MOST_BYTES
    for size, by in payload["sizes"].items():
        ours = by["retone"]
        assert ours["rows"] == int(size)
        # Of the planted repeats few may be missed; one that is dropped twice is no further loss.
        planted = (payload["setting"]["repeated"] + payload["setting"]["varied"]) * ours["rows"]
        assert sum(ours["dropped"].values()) > 0.8 * planted
        for name, peer in by.items():
            if name != "retone" and "not_run" not in peer:
                assert peer["rows"] == ours["rows"]
                assert peer["same_tokens"]["same"] == peer["same_tokens"]["rows"] > 0
