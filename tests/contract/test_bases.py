"""Bases that cannot be tuned as a recipe asks are refused before anything is trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from retone.config import Recipe
from retone.errors import InputError
from retone.models.loading import weights_parameters
from retone.workflows.create import prepare

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {n}.", "completion": f"It is {n}."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.folder(tmp_path / "base")


def recipe(base: Path, method: dict[str, Any], **model: Any) -> Recipe:
    return Recipe.model_validate(
        {"model": {"name": str(base), **model}, "data": {"train": "rows.jsonl"}, "method": method}
    )


def packed(base: Path, how: dict[str, Any]) -> None:
    """The folder's config says that its weights are packed; nothing here loads them."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": how}))


@pytest.mark.parametrize(
    ("how", "method", "model", "said"),
    [
        (NF4, {"kind": "full"}, {}, "freezes the weights"),
        (NF4, {"kind": "unfreeze"}, {}, "freezes the weights"),
        (NF4, {"init": "pissa"}, {}, "method.init=pissa moves"),
        (NF4, {"kind": "ia3"}, {}, "ia3 does not work"),
        (INT8, {"dora": True}, {}, "dora does not work"),
        (NF4, {}, {"adapter": "x", "adapter_use": "merged"}, "model.adapter_use=stacked"),
        (NF4, {}, {"quantization": "nf4"}, "model.quantization=nf4"),
    ],
)
def test_packed_weights_are_left_as_they_are(
    how: dict[str, Any], method: dict[str, Any], model: dict[str, Any], said: str, base: Path
) -> None:
    packed(base, how)
    with pytest.raises(InputError) as caught:
        prepare(recipe(base, method, **model))
    assert caught.value.code == "quantised-base"
    assert said in caught.value.found
    assert base.name in caught.value.found
    assert not Path("runs").exists()


def test_an_adapter_goes_on_beside_packed_weights(base: Path) -> None:
    packed(base, NF4)
    found = prepare(recipe(base, {}, adapter="x")).resolved
    assert found.recipe.model.adapter_use == "stacked"


def test_two_packed_weights_are_two_parameters(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.zeros(32, 1, dtype=torch.uint8), "a.bias": torch.zeros(8)}, file)
    assert weights_parameters(tmp_path) == 2 * 32 + 8


@pytest.mark.parametrize("kind", ["ia3", "prefix", "prompt", "bottleneck", "last_layers"])
def test_new_tokens_are_trained_or_refused(kind: str, base: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_tokens(["<poem>"])
    tokenizer.save_pretrained(base)
    prepare(recipe(base, {"kind": kind}))  # no row holds the token
    rows = [{"prompt": f"Say {n}.", "completion": f"<poem> {n}."} for n in range(12)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as caught:
        prepare(recipe(base, {"kind": kind}))
    assert caught.value.code == "new-tokens"
    assert "'<poem>'" in caught.value.found
    for trains in ("lora", "full", "unfreeze"):
        prepare(recipe(base, {"kind": trains}))
