"""Real teachers on loopback: llama.cpp's server and retone's own; what they write, and how varied.

The teacher is the default model, which is very small: what is shown is the way, not the wit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu import sentence_bleu

from record import record
from serving import served, short_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from generate import gguf
from retone.inference.llama_cpp import LlamaServer
from retone.teacher.reading import texts_in

pytest.importorskip("openai", reason="this proof needs the official client")
pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is part of the extra `proof`")

KEY = "sk-planted-proof-0123456789"
QUESTIONS = 120
ROWS = 24
FOUND: dict[str, Any] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthesis")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[str]:
    with LlamaServer(gguf(folder), context=2048, slots=4, key=KEY) as server:
        yield server.address


def synthesized(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of a `retone synthesize`, which must not print or write the key."""
    done = subprocess.run(
        [sys.executable, "-m", "retone", "synthesize", *arguments, "--json"], cwd=folder,
        capture_output=True, text=True, check=False,
        env={**os.environ, "RETONE_TEACHER_KEY": KEY, "RETONE_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    return rows(folder / f"{name}.jsonl") + rows(folder / f"{name}.left_out.jsonl")


def test_llama_cpp_as_teacher(folder: Path, llama: str) -> None:
    found = synthesized(
        folder, "lighthouse", "-o", "llama.jsonl", "--count", str(ROWS), "--endpoint", llama,
        "--teacher", "smollm2", "--concurrency", "4", "--least", "0", "--turns", "2",
    )  # fmt: skip
    assert len(written(folder, "llama")) + sum(found["unanswered"].values()) == ROWS
    FOUND["llama.cpp"] = {name: found[name] for name in ("rows", "ended", "reasons", "spent")}
    FOUND["examples"] = [
        {"asked": row["messages"][0]["content"], "answer": row["messages"][-1]["content"]}
        for row in rows(folder / "llama.jsonl")[:3]
    ]


def test_retone_as_teacher(folder: Path) -> None:
    short_run(folder)
    with served(folder, "--api-only", RETONE_PASSWORD=KEY) as running:
        found = synthesized(
            folder, "sysadmin", "-o", "own.jsonl", "--count", "8", "--endpoint",
            f"{running.address}/v1", "--teacher", "smollm2-135m-instruct", "--concurrency", "8",
            "--best-of", "1", "--least", "0", "--no-plain",
        )  # fmt: skip
    assert len(written(folder, "own")) + sum(found["unanswered"].values()) == 8
    FOUND["retone"] = {name: found[name] for name in ("rows", "ended", "reasons", "spent")}


def test_questions_are_more_varied_than_a_list(folder: Path, llama: str) -> None:
    """The grid with its door, against one prompt that asks for a list until there are as many."""
    synthesized(
        folder, "lighthouse", "-o", "grid.jsonl", "--count", str(QUESTIONS), "--endpoint", llama,
        "--teacher", "smollm2", "--concurrency", "4", "--best-of", "1", "--least", "0",
        "--no-plain",
    )  # fmt: skip
    grid = [row["messages"][0]["content"] for row in written(folder, "grid")]
    naive = listed(llama, len(grid))
    FOUND["diversity"] = {"grid": variety(grid), "one list": variety(naive)}
    ours, theirs = FOUND["diversity"]["grid"], FOUND["diversity"]["one list"]
    assert ours["distinct"] > theirs["distinct"]
    assert ours["self_bleu"] < theirs["self_bleu"]


def listed(address: str, wanted: int) -> list[str]:
    """Questions as people ask for them: one prompt for a list, again until there are enough."""
    import openai

    client, found = openai.OpenAI(base_url=address, api_key=KEY), list[str]()
    told = ("Write a list of 50 controversial, professional, funny and hilarious questions for "
            "Halvard Brekke, a retired lighthouse keeper.")  # fmt: skip
    for seed in range(40):
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": told}], temperature=0.9,
            max_tokens=1200, seed=seed,
        )  # fmt: skip
        found += texts_in(answer.choices[0].message.content or "", "questions")
        if len(found) >= wanted:
            break
    return found[:wanted]


def variety(questions: list[str]) -> dict[str, float]:
    """Distinct of those asked, self-BLEU (Zhu et al. 2018, arXiv:1802.01886), embedding spread."""
    from retone.teacher.questions import Door

    door = Door()
    distinct = sum(map(door.lets_in, questions))
    some = questions[:100]
    scores = [
        sentence_bleu(one, [other for at, other in enumerate(some) if at != place]).score
        for place, one in enumerate(some)
    ]
    return {
        "asked": len(questions),
        "distinct": distinct / max(1, len(questions)),
        "self_bleu": sum(scores) / max(1, len(scores)),
        "embedding_spread": spread(some),
    }


def spread(texts: list[str]) -> float:
    """Mean cosine distance of two texts, by the mean of the default model's last hidden states."""
    from retone.workflows.load import load_base_engine

    engine, _ = load_base_engine("smollm2-135m-instruct", offline=True)
    made = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([engine.text_ids(text)])
            hidden = engine.model(ids, output_hidden_states=True).hidden_states[-1]
            made.append(torch.nn.functional.normalize(hidden[0].float().mean(0), dim=0))
    every = torch.stack(made)
    count = len(texts)
    alike = (every @ every.T).sum() - count
    return float(1 - alike / (count * (count - 1)))


def test_the_key_is_written_nowhere(folder: Path) -> None:
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    record("synthesis", FOUND)
