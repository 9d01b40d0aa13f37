"""The page of an inspection in a real browser: the bundled data with faults planted in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from record import record

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
YODA = ROOT / "src" / "retone" / "datasets" / "yoda"
# One fault a row, and the finding that must name it.
PLANTED = {
    "teacher-residue": ("The boat is late.", "As an AI language model, wait for boats I cannot."),
    "secret": ("Send me the key.", "Here, the key is: " + "AKIA" + "QYLPMN5HFIQR7XYA"),
    "personal-data": ("Who repairs it?", "To ada" + "@lovelace-engines.org write you must."),
    "mojibake": ("The café is closed.", "Closed the caf\u00c3\u00a9 is."),
    "placeholder": ("Sign the letter.", "Signed it is, [Your Name]."),
    "special-token": ("Stop now.", "Stop now you must.<|im_end|>"),
    "empty-answer": ("Say nothing.", "N/A"),
    "answer-equals-prompt": ("Leave it as it is.", "Leave it as it is."),
}


def planted_rows(folder: Path) -> Path:
    """The bundled training rows with the planted ones behind them."""
    rows = (YODA / "train.jsonl").read_text(encoding="utf-8")
    faulty = [{"plain": prompt, "yoda": answer} for prompt, answer in PLANTED.values()]
    path = folder / "rows.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in faulty)
    path.write_text(rows + "".join(lines), encoding="utf-8")
    return path


def test_the_page_of_an_inspection(tmp_path: Path) -> None:
    rows = planted_rows(tmp_path)
    page = tmp_path / "data.html"
    command = [sys.executable, "-m", "retone", "inspect", rows.name, "--json", "--html", page.name]
    columns = 'data.columns={prompt="plain", completion="yoda"}'
    command += ["--test", str(YODA / "test.jsonl"), "--set", columns]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # a secret is an error
    found: dict[str, Any] = {each["code"]: each for each in json.loads(done.stdout)["findings"]}
    for code in PLANTED:
        assert found[code]["count"] == 1, found[code]
    pictures(page, tmp_path)
    record("inspect", {"planted": sorted(PLANTED), "found": sorted(found)})


def pictures(page: Path, folder: Path) -> None:
    """Three views without a request or a complaint, and two of them kept for the docs."""
    pytest.importorskip("playwright", reason="pictures need playwright")
    from screenshots import CHROMIUM, VIEWS, page_of, screenshots

    if not Path(CHROMIUM).exists():
        pytest.skip("pictures need Debian's chromium")
    made = screenshots(page, folder)
    assert len(made) == 3
    (IMAGES / "data.png").write_bytes(made[0].read_bytes())
    with page_of(page, VIEWS[0]) as opened:
        opened.locator("#tokens").screenshot(path=str(IMAGES / "tokens.png"))
