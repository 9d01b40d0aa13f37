"""Facts of tables/precision.toml and tables/presets.toml, as `planning.resolve` asks for them."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from retone.config import Recipe

LORA_SCALE = 2.0  # alpha is twice the rank


def type_for(device: str, capability: float, model_type: str) -> tuple[str, str]:
    """The type of tables/precision.toml for a device (or "measured"), and why.

    Args:
        device: cuda, mps or cpu.
        capability: CUDA compute capability; 0 without one.
        model_type: of the model's config.json.
    """
    table = _table("precision")
    row = next(
        row
        for row in table["type"]
        if row["device"] == device and capability >= row.get("capability", 0.0)
    )
    family = table["not_in_float16"]
    if row["dtype"] == "float16" and model_type in family["model_types"]:
        return "float32", f"{family['because']}, and there is no bf16"
    return row["dtype"], row["because"]


def rate_for(recipe: Recipe, parameters: int, scale: float) -> tuple[float, str]:
    """Peak learning rate for a method, an optimizer and a number of parameters, and why.

    Args:
        recipe: method and optimizer.
        parameters: of the base model.
        scale: what multiplies B A of rsLoRA; at twice LoRA's scale its rate is half of LoRA's.
    """
    table, method = _table("presets"), recipe.method
    kind = method.kind
    size = "small" if parameters < table["small_parameters"] else "large"
    rate = next(row for row in table["rate"] if kind in row["kinds"])[size]
    why = f"{kind} on {parameters / 1e6:.0f}M parameters ({size} model)"
    used: set[str] = {recipe.train.optimizer, method.init}
    for row in (*table["variant"], *table["optimizer"]):
        if row["name"] in used:
            rate *= row["factor"]
            why += f", times {row['factor']:g} for {row['name']}"
    if method.plus_ratio != 1:
        rate /= math.sqrt(method.plus_ratio)
        why += f", by the root of {method.plus_ratio:g} for lora+"
    if method.rslora:
        rate *= LORA_SCALE / scale
        why += f", times {LORA_SCALE:g} / {scale:.3g}: scale of lora / of rslora"
    return rate, why


def beta2_for(optimizer: str) -> tuple[float, str] | None:
    """Decay of an optimizer's second running mean, and why; None where it has none."""
    rows = (row for row in _table("presets")["beta2"] if optimizer in row["optimizers"])
    row = next(rows, None)
    return (row["value"], f"{optimizer}'s own") if row else None


def layers_for(kind: str, layers: int) -> tuple[int, str]:
    """Decoder layers that a method trains, or opens together, of so many; and why."""
    row = next(row for row in _table("presets")["layers"] if kind == row["kind"])
    return max(1, round(row["share"] * layers)), f"{row['share']:g} of {layers}"


def rank_for(rows: int) -> tuple[int, str]:
    """Rank of LoRA for so many training rows, and why."""
    row = next(row for row in _table("presets")["rank"] if rows <= row["rows"])
    return row["rank"], f"{rows:,} training rows"


def epochs_for(rows: int) -> tuple[float, str]:
    """Passes over so many training rows, and why."""
    row = next(row for row in _table("presets")["epochs"] if rows <= row["rows"])
    return row["epochs"], f"{rows:,} training rows"


@cache
def _table(name: str) -> dict[str, Any]:
    text = (files("retone") / "tables" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
