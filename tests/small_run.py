"""A finished run of the tiny model in seconds, for tests of what is made of a run afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tiny
from retone.cli import main
from retone.run_dir import Run

NOUNS = ("cat", "dog", "bird", "fish", "mouse", "horse", "goat", "sheep", "duck", "goose", "hen")
RECIPE = """
model.name = "{base}"
[data]
train = "said.csv"
columns = {{ prompt = "said", completion = "told" }}
system = "Be Yoda."
showcase = ["Hello there."]
[train]
max_steps = 4
batch_size = 8
learning_rate = 1e-2
[evaluate]
max_new_tokens = 6
"""


def small_run(folder: Path, *sets: str, **model: Any) -> Run:
    """Tune the tiny model in `folder`; the run `my` under `folder`/runs, with paths that stay."""
    base = tiny.folder(folder / "base", **{"initializer_range": 0.3, **model})
    (folder / "my.toml").write_text(RECIPE.format(base=base))
    rows = [f"The {noun} sleeps,Sleeps the {noun} does" for noun in NOUNS]
    (folder / "said.csv").write_text("\n".join(["said,told", *rows]) + "\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", "my.toml", *(word for one in sets for word in ("--set", one))]) == 0
    finally:
        os.chdir(before)
    return Run(folder / "runs" / "my")
