"""Every method on the bundled Yoda rows with what `resolve` chooses: docs/methods.md is made of it.

Twelve to twenty minutes a row on one core; RETONE_METHODS="lora,ia3" runs some, which replace their
rows in the results. All in one type with one thread: minutes compare while something else runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from record import RESULTS, commit, record
from test_recipes import run

METHODS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "rslora": ("method.rslora=true",),
    "lora+": ("method.plus_ratio=16",),
    "dora": ("method.dora=true",),
    "pissa": ("method.init=pissa",),
    "olora": ("method.init=olora",),
    "qlora (nf4)": ("model.quantization=nf4",),
    "lora on int8": ("model.quantization=int8",),
    "full": ("method.kind=full",),
    "last_layers": ("method.kind=last_layers",),
    "unfreeze": ("method.kind=unfreeze",),
    "ia3": ("method.kind=ia3",),
    "prefix": ("method.kind=prefix",),
    "prompt": ("method.kind=prompt",),
    "bottleneck (pfeiffer)": ("method.kind=bottleneck",),
    "bottleneck (houlsby)": ("method.kind=bottleneck", "method.placement=houlsby"),
}
THREADS, DTYPE = 1, "float32"
CHOSEN = os.environ.get("RETONE_METHODS", "").split(",") if "RETONE_METHODS" in os.environ else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs: the untuned model answers once."""
    return tmp_path_factory.mktemp("methods")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in METHODS if not CHOSEN or name in CHOSEN])
def test_method(name: str, folder: Path) -> None:
    sets = [part for item in (f"model.dtype={DTYPE}", *METHODS[name]) for part in ("--set", item)]
    result = run(
        folder,
        "yoda",
        "--name",
        name.split()[0].strip("+"),
        *sets,
        env={"OMP_NUM_THREADS": str(THREADS)},
    )
    directory = result["directory"]
    training = json.loads((directory / "training.json").read_text())
    resolved = json.loads((directory / "resolved.json").read_text())["recipe"]
    tuned = directory / ("model" if (directory / "model").is_dir() else "adapter")
    weights = sum(file.stat().st_size for file in tuned.glob("*.safetensors"))
    scores = {who: by["bleu"] for who, by in result["scores"].items()}
    row: dict[str, Any] = {
        "commit": commit(),
        "settings": list(METHODS[name]),
        "threads": THREADS,
        "dtype": DTYPE,
        "trained": training["parameters"]["trained"],
        "total": training["parameters"]["total"],
        "bleu": scores["tuned"],
        "copy": scores["copy"]["value"],
        "peak_bytes": training["peak_bytes"],
        "minutes": training["seconds"] / 60,
        "saved_bytes": weights,
        "learning_rate": resolved["train"]["learning_rate"],
        "epochs": resolved["train"]["epochs"],
        "best_loss": training["best_loss"],
    }
    stored = RESULTS / "methods.json"
    known = json.loads(stored.read_text())["methods"] if stored.is_file() else {}
    known[name] = row
    record("methods", {"methods": {each: known[each] for each in METHODS if each in known}})
    assert row["bleu"]["value"] > row["copy"], "tuning is worse than giving the prompt back"
