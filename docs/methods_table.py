"""docs/methods.md: what can be trained, the types and presets, and what a proof run measured."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from evidence import MADE_BY
from retone.config import METHOD_FIELDS
from retone.evaluation.numbers import size
from retone.models.methods import METHODS

TABLES = Path(str(files("retone") / "tables"))
INTRODUCTION = """\
`method.kind` says what of the model is trained; there is one training loop for all. Whatever is
trained is kept in float32. `model.quantization` packs the frozen weights under an adapter: `nf4`
with `lora` is what is called QLoRA."""
TRAINS = {
    "lora": "low-rank matrices beside linear layers",
    "full": "all weights",
    "last_layers": "output head, final norm, the last `method.layers` decoder layers",
    "unfreeze": "the same first, then `method.layers` more at a time, until all are trained",
    "ia3": "scales of keys, values and feed-forward outputs",
    "prefix": "keys and values of positions before the prompt",
    "prompt": "embeddings of positions before the prompt",
    "bottleneck": "small layers behind feed-forward layers, and attention (`houlsby`)",
}
SAVED = {
    "adapter": "peft adapter",
    "model": "whole model",
    "bottleneck": "bottlenecks, for retone alone",
}


def methods_page(proofs: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/methods.md from the tables of the package and the committed proofs."""
    lines = ["# Methods", MADE_BY, "", INTRODUCTION, "", *_kinds(), ""]
    lines += ["## Measured", "", *_measured(proofs.get("methods")), ""]
    lines += ["## Types by device", "", *_types(_table("precision")), ""]
    lines += ["## Presets", "", *_presets(_table("presets")), ""]
    lines += _sweep(proofs.get("presets"))
    return "\n".join(lines) + "\n"


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((TABLES / f"{name}.toml").read_text(encoding="utf-8"))


def _kinds() -> Iterator[str]:
    yield "| `method.kind` | trains | saved as | merges | its fields |"
    yield "|---|---|---|---|---|"
    for kind, method in METHODS.items():
        fields = ", ".join(f"`{name}`" for name, kinds in METHOD_FIELDS.items() if kind in kinds)
        merges = "yes" if method.merges else "no"
        yield f"| `{kind}` | {TRAINS[kind]} | {SAVED[method.saved_as]} | {merges} | {fields} |"


def _measured(proof: Mapping[str, Any] | None) -> Iterator[str]:
    if proof is None:
        yield "No proof run of all methods is committed yet."
        return
    machine, first = proof["machine"], next(iter(proof["methods"].values()))
    yield (
        "The bundled Yoda rows, SmolLM2-135M-Instruct as its Q4_1 GGUF unpacks, "
        f"{machine['name']}, {proof['date']}, "
        f"{_commits(proof['methods'])}; with the presets, but where settings are given. BLEU of "
        f"{first['bleu']['n']} held-out rows with its 95 % interval; copying the prompt scores "
        f"{first['copy']:.1f}."
    )
    yield ""
    yield (
        "| method | settings | trained | BLEU | peak memory | training | threads | type | rate "
        "| file |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, row in proof["methods"].items():
        bleu = row["bleu"]
        settings = ", ".join(f"`{each}`" for each in row["settings"])
        yield (
            f"| {name} | {settings} | {100 * row['trained'] / row['total']:.2f} % "
            f"| {bleu['value']:.1f} ({bleu['low']:.1f} to {bleu['high']:.1f}) "
            f"| {size(row['peak_bytes'])} | {row['minutes']:.1f} min "
            f"| {row['threads']} | {row['dtype']} "
            f"| {row['learning_rate']:.3g} | {size(row['saved_bytes'])} |"
        )


def _commits(rows: Mapping[str, Any]) -> str:
    """Where figures come from that were recorded one by one."""
    found = list(dict.fromkeys(row.get("commit", "of an earlier proof") for row in rows.values()))
    return f"commit{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _types(table: Mapping[str, Any]) -> Iterator[str]:
    yield '`model.dtype = "auto"` takes the first row that fits.'
    yield ""
    yield "| device | compute capability | type | because | source |"
    yield "|---|---|---|---|---|"
    for row in table["type"]:
        least = f"{row['capability']:.1f} or more" if row.get("capability") else ""
        yield f"| {row['device']} | {least} | {row['dtype']} | {row['because']} | {row['source']} |"
    family = table["not_in_float16"]
    names = ", ".join(f"`{name}`" for name in family["model_types"])
    yield ""
    yield (
        f"`auto` never takes float16 for {names}. "
        f"{family['because'].capitalize()} ({family['source']})."
    )


def _presets(table: Mapping[str, Any]) -> Iterator[str]:
    size = f"{table['small_parameters'] / 1e6:.0f}M parameters"
    yield (
        "What a recipe gets that leaves out `train.learning_rate`, `train.beta2`, `method.rank`, "
        "`train.epochs`."
    )
    yield ""
    yield f"| `method.kind` | under {size} | above | source |"
    yield "|---|---|---|---|"
    for row in table["rate"]:
        kinds = ", ".join(f"`{kind}`" for kind in row["kinds"])
        yield f"| {kinds} | {row['small']:g} | {row['large']:g} | {row['source']} |"
    yield ""
    yield "| with | times | source |"
    yield "|---|---|---|"
    for row in (*table["variant"], *table["optimizer"]):
        yield f"| {row['name']} | {row['factor']:g} | {row['source']} |"
    for name in ("lora+", "rslora"):
        yield f"| {name} | {table[name]['factor']} | {table[name]['source']} |"
    yield ""
    yield "| optimizers | `train.beta2` | source |"
    yield "|---|---|---|"
    for row in table["beta2"]:
        names = ", ".join(f"`{name}`" for name in row["optimizers"])
        yield f"| {names} | {row['value']:g} | {row['source']} |"
    yield ""
    yield from _by_rows(table["rank"], "rank", "rank of LoRA")
    yield ""
    yield from _by_rows(table["epochs"], "epochs", "epochs")


def _by_rows(rows: Sequence[Mapping[str, Any]], name: str, title: str) -> Iterator[str]:
    yield f"| training rows | {title} | source |"
    yield "|---|---|---|"
    for row in rows[:-1]:
        yield f"| up to {row['rows']:,} | {row[name]:g} | {row['source']} |"
    yield f"| above | {rows[-1][name]:g} | {rows[-1]['source']} |"


def _sweep(sweep: Mapping[str, Any] | None) -> Iterator[str]:
    if sweep is None:
        yield "No sweep is committed yet."
        return
    rates = sorted({cell["learning_rate"] for cell in sweep["cells"].values()})
    yield (
        "Held-out BLEU of LoRA by learning rate, style and number of training rows "
        f"({_commits(sweep['cells'])}):"
    )
    yield ""
    yield f"| style | rows | epochs | type | copied | {' | '.join(f'{rate:g}' for rate in rates)} |"
    yield "|---" * (5 + len(rates)) + "|"
    rows: dict[tuple[str, int], dict[float, Any]] = {}
    for cell in sweep["cells"].values():
        rows.setdefault((cell["style"], cell["rows"]), {})[cell["learning_rate"]] = cell
    for (style, count), by_rate in sorted(rows.items()):
        first = next(iter(by_rate.values()))
        types = " and ".join(sorted({cell["dtype"] for cell in by_rate.values()}))
        scores = (
            f"{by_rate[rate]['bleu']['value']:.1f}" if rate in by_rate else "" for rate in rates
        )
        yield (
            f"| {style} | {count} | {first['epochs']:g} | {types} | {first['copy']:.1f} "
            f"| {' | '.join(scores)} |"
        )
