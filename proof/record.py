"""Every proof and benchmark leaves a JSON with date, commit, versions and hardware."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retone.planning import probe_machine

RESULTS = Path(__file__).parent / "results"
VERSIONED = ("retone", "torch", "transformers", "peft", "accelerate", "sacrebleu")


def record(name: str, payload: dict[str, Any], folder: Path | None = None) -> Path:
    """Write `payload` with its provenance to `folder`/`name`.json (proof/results by default)."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "changed_files": len(_git("status", "--porcelain", "--", "src").splitlines()),
        "versions": {item: importlib.metadata.version(item) for item in VERSIONED},
        "python": platform.python_version(),
        "machine": asdict(probe_machine()),
    }
    path = (folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, **payload}, indent=1, ensure_ascii=False) + "\n")
    return path


def commit() -> str:
    """The commit that is checked out; figures that are recorded one by one carry their own."""
    return _git("rev-parse", "--short=12", "HEAD")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return done.stdout.strip()
