"""`make bench`: runs generate.py and records its JSON. No figure of time is asserted here."""

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
ARGUMENTS = shlex.split(os.environ.get("RETONE_GENERATE_ARGS", ""))


@pytest.mark.timeout(3600)
def test_generate(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is part of the extra `proof`")
    done = subprocess.run(
        [sys.executable, str(HERE / "generate.py"), "--json", *ARGUMENTS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    payload = json.loads(done.stdout)
    record("generate", payload, tmp_path if ARGUMENTS else HERE / "results")
    assert len(payload["figures"]) == 5
    for found in payload["figures"].values():
        assert found["ratio"]["retone"] == 1
        assert all(rate > 0 for rate in found["tokens_per_s"].values())
    assert payload["cold_ask"]["first_token_s"] > 0
