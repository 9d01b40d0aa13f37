"""The presets against a small sweep: 3 learning rates x 3 data sizes x 2 styles, LoRA.

The grid is fixed; a preset between its points is measured as a column of its own.

Yoda is the bundled set; the other style turns verses of the Bible in Basic English (1949) into
those of the King James Version. What a cell scores is recorded at once, so that a sweep
that was stopped goes on; without presets.json it begins again. The type is that of the machine
(RETONE_DTYPE) and stands in each cell; `-k yoda` and `-k verses` may run side by side.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from record import RESULTS, commit, record
from retone.config import DataSection, Recipe
from retone.presets import LORA_SCALE, epochs_for, rate_for
from test_recipes import run

VERSES = (
    Path(__file__).resolve().parents[2]
    / "shared" / "data" / "style" / "public_kjv_bbe_web_ylt_2000.jsonl"
)  # fmt: skip
PRESET, _ = rate_for(Recipe(data=DataSection(train="rows.jsonl")), 135_000_000, LORA_SCALE)
RATES = sorted({3e-4, 1e-3, 3e-3, PRESET})
SIZES = (100, 300, 600)
STYLES = ("yoda", "verses")
DTYPE = os.environ.get("RETONE_DTYPE", "float32")
NEAR = 0.95  # of the best score of its row of the grid


def cells() -> dict[str, Any]:
    stored = RESULTS / "presets.json"
    if not stored.is_file():
        return {}
    found: dict[str, Any] = json.loads(stored.read_text())["cells"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs, with the verses as pairs."""
    work = tmp_path_factory.mktemp("presets")
    if VERSES.is_file():
        rows = [json.loads(line) for line in VERSES.read_text("utf-8").splitlines()]
        pairs = [{"prompt": row["bbe"], "completion": row["kjv"]} for row in rows]
        for name, part in (("test", pairs[:120]), ("train", pairs[120:])):
            lines = (json.dumps(pair) + "\n" for pair in part)
            (work / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        (work / "verses.toml").write_text(
            '[data]\ntrain = "train.jsonl"\ntest = "test.jsonl"\ntask = "rewrite"\n'
            'system = "Rewrite the verse as the King James Bible would say it."\n'
            'allow = ["leak"]\n'
        )
    return work


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style", STYLES)
def test_cell(style: str, size: int, rate: float, folder: Path) -> None:
    if style == "verses" and not VERSES.is_file():
        pytest.skip(f"no verses in {VERSES}")
    key = f"{style} {size} {rate:g}"
    if key in cells():
        return
    path = "bundled:yoda/train.jsonl" if style == "yoda" else str(folder / "train.jsonl")
    rows = 525 if style == "yoda" and size > 525 else size  # all there are
    epochs = epochs_for(rows)[0]
    result = run(
        folder, "yoda" if style == "yoda" else "verses.toml",
        "--name", f"{style}-{size}-{rate:g}", "--epochs", str(epochs),
        "--set", f'data.train=[{{path="{path}", sample={rows}}}]',
        "--set", f"train.learning_rate={rate}", "--set", f"model.dtype={DTYPE}",
    )  # fmt: skip
    bleu = result["scores"]["tuned"]["bleu"]
    cell = {
        "commit": commit(), "dtype": DTYPE,
        "style": style, "rows": rows, "learning_rate": rate, "epochs": epochs, "bleu": bleu,
        "copy": result["scores"]["copy"]["bleu"]["value"],
        "base": result["scores"]["base"]["bleu"]["value"],
    }  # fmt: skip
    record("presets", {"cells": {**cells(), key: cell}})
    assert bleu["value"] is not None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style", STYLES)
def test_the_preset_is_near_the_best(style: str, size: int) -> None:
    """The rate of tables/presets.toml scores within 5 % of the best of its row of the sweep."""
    known = cells()
    row = {rate: known.get(f"{style} {size} {rate:g}") for rate in RATES}
    assert all(row.values()), "the sweep is not complete"
    scores = {rate: cell["bleu"]["value"] for rate, cell in row.items() if cell}
    assert scores[PRESET] >= NEAR * max(scores.values())
