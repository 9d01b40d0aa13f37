"""Facts of tables/precision.toml and tables/presets.toml, as `planning.resolve` asks for them."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from retone.config import Recipe


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


def rate_for(recipe: Recipe, parameters: int, rows: int) -> tuple[float, str]:
    """Peak learning rate for a method, an optimizer, parameters and training rows, and why."""
    table, kind = _table("presets"), recipe.method.kind
    size = "small" if parameters < table["small_parameters"] else "large"
    rate = next(row for row in table["rate"] if kind in row["kinds"])[size]
    why = f"{kind} on {parameters / 1e6:.0f}M parameters ({size} model)"
    for few in table["few"]:
        if kind in few["kinds"] and size == few["size"] and rows <= few["rows"]:
            rate *= few["factor"]
            why += f", times {few['factor']:g} for {rows:,} rows"
    variants = {"olora": recipe.method.init == "olora", "lora+": recipe.method.plus_ratio > 1}
    for variant in table["variant"]:
        if variants[variant["name"]]:
            rate *= variant["factor"]
            why += f", times {variant['factor']:g} for {variant['name']}"
    for scale in table["scale"]:
        if recipe.train.optimizer == scale["optimizer"]:
            rate *= scale["factor"]
            why += f", times {scale['factor']:g} for {recipe.train.optimizer}"
    return rate, why


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
