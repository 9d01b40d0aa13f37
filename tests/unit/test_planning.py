"""What `resolve` fills in, on machines that are not here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from retone.config import DataSection, Recipe
from retone.planning import DataFacts, Machine, ModelFacts, Resolved, resolve
from retone.presets import epochs_for

SMALL = ModelFacts(parameters=135_000_000, context=8192, model_type="llama")
GEMMA3 = ModelFacts(parameters=1_000_000_000, context=8192, model_type="gemma3_text")
GB = 10**9


def cuda(name: str, capability: float) -> Machine:
    return Machine("cuda", name, cores=8, memory_bytes=16 * GB, capability=capability)


def cpu(bf16: float | None, fp32: float | None) -> Machine:
    return Machine("cpu", "any", 2, 16 * GB, bf16_tflops=bf16, fp32_tflops=fp32)


def resolved(
    machine: Machine | None = None, facts: ModelFacts = SMALL, rows: int = 600, **sections: Any
) -> Resolved:
    data = DataFacts(rows, longest_row=80, longest_answer=40, task=("rewrite", "it says so"))
    recipe = Recipe(data=DataSection(train="rows.jsonl"), **sections)
    return resolve(recipe, machine or cpu(1.0, 0.3), data, facts)


@pytest.mark.parametrize(
    ("machine", "model", "dtype"),
    [
        pytest.param(cuda("NVIDIA H100", 9.0), SMALL, "bfloat16", id="Hopper"),
        pytest.param(cuda("NVIDIA A100", 8.0), SMALL, "bfloat16", id="Ampere"),
        pytest.param(cuda("NVIDIA GeForce RTX 3060", 8.6), SMALL, "bfloat16", id="RTX 30"),
        pytest.param(cuda("Tesla T4", 7.5), SMALL, "float16", id="T4"),
        pytest.param(cuda("Tesla V100", 7.0), SMALL, "float16", id="V100"),
        pytest.param(cuda("Tesla P100", 6.0), SMALL, "float32", id="P100"),
        pytest.param(cuda("Tesla T4", 7.5), GEMMA3, "float32", id="T4 and a family beyond fp16"),
        pytest.param(cuda("NVIDIA A100", 8.0), GEMMA3, "bfloat16", id="Ampere and that family"),
        pytest.param(Machine("mps", "Apple M2", 8, 16 * GB), SMALL, "float32", id="Apple"),
        pytest.param(cpu(1.9, 0.3), SMALL, "bfloat16", id="CPU with AMX"),
        pytest.param(cpu(0.5, 0.3), SMALL, "bfloat16", id="CPU with AVX512-bf16"),
        pytest.param(cpu(0.05, 0.3), SMALL, "float32", id="CPU with AVX2"),
        pytest.param(cpu(0.35, 0.3), SMALL, "float32", id="CPU, hardly faster"),
        pytest.param(cpu(None, None), SMALL, "float32", id="CPU, not measured"),
    ],
)
def test_types_by_device(machine: Machine, model: ModelFacts, dtype: str) -> None:
    found = resolved(machine, model)
    assert found.recipe.model.dtype == dtype
    assert found.chosen["model.dtype"].value == dtype
    assert len(found.chosen["model.dtype"].because) > 15
    assert resolved(machine, model, model={"dtype": "float32"}).recipe.model.dtype == "float32"


def test_rates_depend_on_method_size_and_optimizer() -> None:
    def rate(parameters: int = 135_000_000, **sections: Any) -> float:
        found = resolved(facts=replace(SMALL, parameters=parameters), **sections)
        return found.recipe.train.learning_rate or 0.0

    assert rate() > rate(3_000_000_000) > rate(3_000_000_000, method={"kind": "full"})
    assert rate(method={"kind": "prompt"}) > rate(method={"kind": "ia3"}) > rate()
    assert rate(train={"optimizer": "lion"}) == pytest.approx(0.1 * rate())
    assert rate(method={"plus_ratio": 16}) < rate()
    assert rate(method={"init": "olora"}) < rate()
    assert rate(method={"rslora": True}) < rate() == rate(method={"dora": True})
    # rsLoRA's scale is that of LoRA here, 16 / sqrt(64) = 2: the same arithmetic, the same rate.
    assert rate(method={"rslora": True, "rank": 64}) == rate(method={"rank": 64})
    for kind in ("lora", "full", "last_layers", "unfreeze", "ia3", "prefix", "prompt"):
        assert 1e-6 < rate(method={"kind": kind}) < 0.1


def test_the_second_running_mean_is_the_optimizers_own() -> None:
    def beta2(**train: Any) -> float | None:
        return resolved(train=train).recipe.train.beta2

    assert (beta2(), beta2(optimizer="lion"), beta2(optimizer="muon")) == (0.999, 0.99, 0.999)
    assert beta2(optimizer="lion", beta2=0.95) == 0.95
    assert beta2(optimizer="adafactor") is None


def test_few_rows_are_seen_more_often() -> None:
    passes = [epochs_for(rows)[0] for rows in (10, 100, 300, 600, 100_000)]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1] >= 1
    found = resolved(rows=100)
    assert found.recipe.train.epochs == passes[1]
    assert "100 training rows" in found.chosen["train.epochs"].because


def test_many_rows_get_a_higher_rank() -> None:
    ranks = [resolved(rows=rows).recipe.method.rank for rows in (10, 600, 50_000)]
    assert ranks == sorted(ranks)
    assert ranks[0] == ranks[1] < ranks[2]
    found = resolved(rows=50_000)
    assert found.recipe.method.alpha == 2 * found.recipe.method.rank
    given = resolved(rows=50_000, method={"rank": 4})
    assert (given.recipe.method.rank, given.recipe.method.alpha) == (4, 8)
    assert "method.rank" not in given.chosen
    assert resolved(method={"kind": "full"}).recipe.method.rank is None
    root = resolved(rows=50_000, method={"rslora": True})
    assert root.recipe.method.alpha == resolved(method={"rslora": True}).recipe.method.alpha


def test_a_share_of_warm_up_becomes_steps() -> None:
    assert resolved(train={"max_steps": 200}).recipe.train.warmup_steps == 10
    found = resolved(train={"max_steps": 200, "warmup_steps": 0.1})
    assert found.recipe.train.warmup_steps == 20
    assert found.chosen["train.warmup_steps"].because == "10% of the steps"
    given = resolved(train={"max_steps": 200, "warmup_steps": 7})
    assert given.recipe.train.warmup_steps == 7
    assert "train.warmup_steps" not in given.chosen
    assert resolved(train={"max_steps": 200, "warmup_steps": 0}).recipe.train.warmup_steps == 0
    timed = resolved(train={"minutes": 5})
    assert timed.recipe.train.warmup_steps == 0.05
    assert "minutes" in timed.chosen["train.warmup_steps"].because


def test_an_older_adapter_is_merged_where_that_can_be() -> None:
    assert resolved(model={"adapter": "x"}).recipe.model.adapter_use == "merged"
    packed = resolved(model={"adapter": "x", "quantization": "nf4"})
    assert packed.recipe.model.adapter_use == "stacked"
    assert resolved().recipe.model.adapter_use == "auto"  # there is none


def test_paging_needs_a_gpu() -> None:
    paged = {"optimizer": "paged_adamw_8bit", "max_steps": 5}
    on_cpu = resolved(train=paged)
    assert on_cpu.recipe.train.optimizer == "adamw_8bit"
    assert "no GPU memory" in on_cpu.chosen["train.optimizer"].because
    on_gpu = resolved(cuda("NVIDIA A100", 8.0), train=paged)
    assert on_gpu.recipe.train.optimizer == "paged_adamw_8bit"


@pytest.mark.parametrize(("kind", "layers"), [("last_layers", 15), ("unfreeze", 4)])
def test_layers_are_a_share_of_the_models(kind: str, layers: int) -> None:
    deep, section = replace(SMALL, layers=30), {"kind": kind}
    found = resolved(facts=deep, method=section)
    assert found.recipe.method.layers == layers
    assert "of 30" in found.chosen["method.layers"].because
    assert resolved(facts=replace(SMALL, layers=1), method=section).recipe.method.layers == 1
    given = resolved(facts=deep, method={**section, "layers": 2})
    assert given.recipe.method.layers == 2
    assert "method.layers" not in resolved().chosen


def test_attention_is_fused_where_the_architecture_has_it() -> None:
    gpu = cuda("NVIDIA A100", 8.0)
    assert resolved(gpu).recipe.model.attention == "sdpa"
    capped = resolved(gpu, replace(SMALL, fuses=False))
    assert capped.recipe.model.attention == "eager"
    assert "no fused attention" in capped.chosen["model.attention"].because


def test_a_resolved_recipe_reads_back() -> None:
    for kind in ("lora", "full", "prompt", "bottleneck"):
        found = resolved(method={"kind": kind}, train={"warmup_steps": 0.1})
        assert Resolved.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"method": {"kind": "full", "rank": 4}}, "method.rank is for the kind lora"),
        ({"method": {"layers": 2}}, "method.layers is for the kind last_layers or unfreeze"),
        ({"method": {"kind": "prefix", "dropout": 0.1}}, "method.dropout is for the kind"),
        ({"method": {"dora": True, "init": "pissa"}}, "leave method.init out"),
        ({"model": {"quantization": "nf4"}, "method": {"kind": "full"}}, "take method.kind=lora"),
        ({"model": {"quantization": "int8"}, "method": {"init": "olora"}}, "leave one of them out"),
        ({"model": {"adapter": "x"}, "method": {"kind": "ia3"}}, "by plain lora alone"),
        (
            {"model": {"adapter": "x", "adapter_use": "merged", "quantization": "nf4"}},
            "model.adapter_use=stacked",
        ),
        ({"model": {"quantization": "nf4"}, "method": {"kind": "ia3"}}, "ia3 does not work"),
        ({"model": {"quantization": "int8"}, "method": {"dora": True}}, "dora does not work"),
        ({"model": {"adapter": "x"}, "method": {"bias": "all"}}, "by plain lora alone"),
        ({"model": {"adapter_use": "stacked"}}, "there is none"),
        ({"method": {"init": "pissa", "bias": "all"}}, "neither biases nor whole modules"),
        ({"method": {"init": "olora", "train_also": ["norm"]}}, "neither biases nor whole modules"),
        (
            {"method": {"kind": "prefix"}, "train": {"gradient_checkpointing": True}},
            "switches off",
        ),
        ({"objective": {"kind": "sft"}, "data": {"task": "text"}}, "do not go together"),
        ({"objective": {"kind": "text"}, "data": {"task": "chat"}}, "do not go together"),
        ({"method": {"kind": "unfreeze", "open_until": 1.0}}, "less than 1"),
        ({"train": {"warmup_steps": 1.5}}, "less than 1"),
        ({"train": {"beta1": 1.0}}, "less than 1"),
    ],
)
def test_what_does_not_go_together_is_said(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe(**{**sections, "data": {"train": "rows.jsonl", **sections.get("data", {})}})
