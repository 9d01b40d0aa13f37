"""One short tune of the real default model on the real data: the spine, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retone.cli import main
from retone.run_dir import Run, read_jsonl


def test_ten_steps_on_the_real_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    embedded_folder: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    short = ["train.max_steps=10", "train.batch_size=8", "evaluate.limit=4",
             "data.showcase=[]", "evaluate.max_new_tokens=24"]  # fmt: skip
    sets = [part for item in short for part in ("--set", item)]
    assert main(["run", "yoda", "--model", str(embedded_folder), *sets, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    losses = [line["loss"] for line in read_jsonl(Run(Path(told["run"])).metrics)]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert (
        told["scores"]["tuned"]["perplexity"]["value"]
        < told["scores"]["base"]["perplexity"]["value"]
    )
    assert told["scores"]["copy"]["bleu"]["n"] == 4
    assert Path(told["report"]).is_file()
