"""Exports on real and on tiny models: the run, transformers and llama.cpp say the same.

The real run is the bundled recipe `yoda`; the tiny ones have random weights, the architecture of
their family, and a real tokenizer and template of it. They learn one answer by heart: random
weights think nothing likely, and eight bits would swap words that are about as likely.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chat_models import SHARED, tokenizer_of
from record import record
from retone.evaluation.gate import limits_of
from retone.workflows.export import Exported, export
from test_recipes import run

pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is part of the extra `llamacpp`")

LEAST = {"adapter": 0.999, "merged": 0.99, "gguf-f16": 0.99, "gguf-bf16": 0.99,
         "gguf-q8_0": 0.95, "lora": 0.99}  # fmt: skip
SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 2048, "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip
# family -> (architecture, its own settings, whose tokenizer and template of tests/chat_models.py)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True}, "qwen3"),
    "Phi-3": ("Phi3", {"sliding_window": None}, "phi-3"),
    "Gemma-2": ("Gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 64}, "gemma-2"),
    "Mistral": ("Mistral", {"sliding_window": None}, "tinyllama"),
    "Llama": ("Llama", {}, "llama-3.1"),
}
ANSWER = "Learned by heart, this answer is."
RECIPE = """
model.name = "base"
[data]
train = "rows.jsonl"
eval_fraction = 0.2
system = "Rewrite the sentence as Yoda would say it."
[train]
max_steps = 40
batch_size = 8
learning_rate = 1e-2
[evaluate]
max_new_tokens = 24
"""
# The default base lies on a grid of four bits (an unpacked Q4_1 file). The grid of q5_1 has about
# two steps for one of its own, and rounds what a tune moved back to where it was.
BLOCKED = {("yoda", "gguf-q5_1")}
REAL = (("adapter", "q8_0"), ("merged", "q8_0"), ("lora", "q8_0"), ("gguf", "bf16"),
        ("gguf", "q8_0"), ("gguf", "q5_1"), ("gguf", "q4_0"), ("gguf", "q4_k_m"))  # fmt: skip
TINY = (("merged", "bfloat16"), ("gguf", "f16"), ("gguf", "bf16"), ("gguf", "q8_0"))
FOUND: dict[str, dict[str, Any]] = {}


def named(to: str, kind: str) -> str:
    return f"gguf-{kind}" if to == "gguf" else to


def noted(who: str, exported: Exported) -> None:
    """Ask of the gate what an export has to reach, and keep what it said."""
    found = {"ok": exported.ok, **exported.gate.as_json()}
    limits = limits_of(exported.name.removeprefix("gguf-"))  # stricter where merged in float32
    assert found["top-1"]["limit"] >= limits["top_1"]
    assert found["drift"]["limit"] <= limits["drift"]
    assert exported.ok == ((who, exported.name) not in BLOCKED), exported.gate.rows()
    assert exported.ok == (exported.path is not None)
    # A tiny model may not learn to end, and then there is no end to compare.
    untold = {name for name, check in found.items() if name != "ok" and check["ok"] is None}
    assert untold <= (set() if who == "yoda" else {"stop"})
    assert found["prompt ids"]["value"] == found["prompt ids"]["limit"]
    if exported.ok:
        assert found["top-1"]["value"] >= LEAST.get(exported.name, 0.8)
    FOUND.setdefault(who, {})[exported.name] = found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    run(folder, "yoda")
    return folder


@pytest.mark.parametrize(("to", "kind"), REAL)
def test_a_real_run(real: Path, monkeypatch: pytest.MonkeyPatch, to: str, kind: str) -> None:
    monkeypatch.chdir(real)
    noted("yoda", export("yoda", to=to, kind=kind, offline=True))


@pytest.fixture(scope="module", params=FAMILIES)
def tiny_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not SHARED.exists():
        pytest.skip(f"no tokenizers in {SHARED}")
    name, own, chat = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(name)
    tokenizer = tokenizer_of(chat)
    ends = tokenizer.eos_token_id
    config = getattr(transformers, f"{name}Config")(
        **{**SMALL, **own, "vocab_size": len(tokenizer), "pad_token_id": ends,
           "bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends}
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "tiny.toml").write_text(RECIPE)
    asked = (files("retone") / "datasets" / "yoda" / "train.jsonl").read_text("utf-8").splitlines()
    rows = [{"prompt": json.loads(line)["plain"], "completion": ANSWER} for line in asked[:60]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(folder, "tiny.toml")
    return request.param, folder


@pytest.mark.parametrize(("to", "kind"), TINY)
def test_a_family(tiny_run: Any, monkeypatch: pytest.MonkeyPatch, to: str, kind: str) -> None:
    family, folder = tiny_run
    monkeypatch.chdir(folder)
    dtype = {"dtype": kind} if to == "merged" else {"kind": kind}
    noted(family, export("tiny", to=to, licence="Apache-2.0", offline=True, **dtype))


def test_it_is_recorded() -> None:
    expected = {"yoda": REAL, **dict.fromkeys(FAMILIES, TINY)}
    assert {who: set(found) for who, found in FOUND.items()} == {
        who: {named(*one) for one in forms} for who, forms in expected.items()
    }
    record("exports", {"exports": FOUND})
