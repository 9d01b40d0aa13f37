"""Adapters of other tools: what is refused before anything is loaded, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import VeraConfig

import tiny
from foreign_adapters import CONFIGS, edit, lora, saved
from retone.errors import InputError
from retone.models.foreign import base_named, check_fits, method_fields, read_config
from retone.models.locate import LocatedModel, locate
from retone.models.saving import check_base

TOKENS = 320


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocatedModel]:
    folder = tmp_path_factory.mktemp("bases")
    wide = {"hidden_size": 64, "num_key_value_heads": 4}
    return {
        "own": locate(str(tiny.folder(folder / "own"))),
        "wide": locate(str(tiny.folder(folder / "wide", **wide))),
        "deep": locate(str(tiny.folder(folder / "deep", num_hidden_layers=3))),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_fits_its_own_base_alone(
    name: str, bases: dict[str, LocatedModel], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "adapter", bases["own"].path, CONFIGS[name]())
    read_config(folder)
    check_fits(folder, bases["own"], TOKENS)
    with pytest.raises(InputError) as refused:
        check_fits(folder, bases["wide"], TOKENS)
    assert refused.value.code == "adapter-misfit"
    assert " in the adapter and [" in refused.value.found  # shapes


def test_a_misfit_names_module_and_shapes(bases: dict[str, LocatedModel], tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", bases["own"].path, lora())
    with pytest.raises(InputError) as refused:
        check_fits(folder, bases["wide"], TOKENS)
    module = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert f"{module} is [4, 32] in the adapter and [4, 64] in the model" in refused.value.found
    assert "and 1 more" in refused.value.found


def test_layers_that_one_side_lacks_are_told(
    bases: dict[str, LocatedModel], tmp_path: Path
) -> None:
    short = saved(tmp_path / "short", bases["own"].path, lora())
    deep = saved(tmp_path / "deep", bases["deep"].path, lora())
    with pytest.raises(InputError, match=r"layers\.2\.\S+ is missing in the adapter"):
        check_fits(short, bases["deep"], TOKENS)
    with pytest.raises(InputError, match=r"layers\.2\.\S+ is not in the model"):
        check_fits(deep, bases["own"], TOKENS)


def test_modules_that_the_base_does_not_have_are_told(
    bases: dict[str, LocatedModel], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "adapter", bases["own"].path, lora())
    edit(folder, target_modules=["c_attn"])
    with pytest.raises(InputError, match="c_attn"):
        check_fits(folder, bases["own"], TOKENS)


def test_pickles_and_unknown_types_are_refused_at_once(
    bases: dict[str, LocatedModel], tmp_path: Path
) -> None:
    vera = VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = saved(tmp_path / "adapter", bases["own"].path, vera)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError) as refused:
        read_config(folder)
    assert refused.value.code == "unusable-adapter"
    assert "adapter_model.bin is a pickle file" in refused.value.found
    assert "its peft type is VERA" in refused.value.found
    assert "safe_serialization=True" in refused.value.remedy


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"task_type": "SEQ_CLS"}, "its task is SEQ_CLS"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"lora_bias": True}, "lora_bias"),
        ({"from_a_newer_peft": {"a": 1}}, "from_a_newer_peft"),
        ({"init_lora_weights": "pissa"}, "begun as pissa"),
    ],
)
def test_what_would_answer_otherwise_is_refused_by_name(
    fields: dict[str, Any], told: str, bases: dict[str, LocatedModel], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "adapter", bases["own"].path, lora())
    read_config(folder)
    edit(folder, **fields)
    with pytest.raises(InputError, match=told):
        read_config(folder)


def test_a_config_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(InputError, match=r"adapter_config\.json cannot be read"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"adapter_config\.json cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize("told", ['{"model": "mine"}', "[1]", None])
def test_a_base_that_another_tool_does_not_tell_is_not_held_against_it(
    bases: dict[str, LocatedModel], tmp_path: Path, told: str | None
) -> None:
    if told:
        (tmp_path / "base_model.json").write_text(told)
    check_base(tmp_path, bases["own"])
    (tmp_path / "base_model.json").write_text(json.dumps({"sha256": bases["own"].sha256}))
    check_base(tmp_path, bases["own"])
    with pytest.raises(InputError, match="trained on another base model") as refused:
        check_base(tmp_path, bases["deep"])
    assert f"retone adopt {tmp_path} --model MODEL" in refused.value.remedy


def test_the_base_in_a_cache_is_the_hubs(tmp_path: Path) -> None:
    named = "/home/me/.cache/huggingface/hub/models--Org--Some-Model-1B/snapshots/0123abcd"
    assert base_named({"base_model_name_or_path": named}) == ("Org/Some-Model-1B", "0123abcd")
    by_id = {"base_model_name_or_path": "Org/Name", "revision": "v2"}
    assert base_named(by_id) == ("Org/Name", "v2")
    local = {"base_model_name_or_path": str(tmp_path), "revision": "v2"}
    assert base_named(local) == (str(tmp_path), None)
    assert base_named({"base_model_name_or_path": None}) == ("", None)


def test_the_method_is_what_the_config_tells() -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "use_dora": True, "bias": "none"}
    assert method_fields(config) == {
        "kind": "lora", "rank": 4, "alpha": 32, "dora": True, "bias": "none",
    }  # fmt: skip
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 7}
    assert method_fields(prefix) == {"kind": "prefix", "virtual_tokens": 7}
