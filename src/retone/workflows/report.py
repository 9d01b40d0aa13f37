"""The report of an evaluation, drawn from what the run directory holds and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retone.evaluation.data_page import DataReport
from retone.evaluation.gate import Gate
from retone.evaluation.report import ReportData, render_report
from retone.evaluation.votes import Votes
from retone.run_dir import Run, read_json, read_jsonl, write_whole
from retone.workflows.adopt import trained_here


def write_report(run: Run, evaluation: Path, target: Path) -> None:
    """Render the evaluation in the folder `evaluation` to the HTML file `target`."""
    write_whole(target, render_report(report_data(run, evaluation)))


def report_data(run: Run, evaluation: Path) -> ReportData:
    """Everything that the report shows, as plain values."""
    manifest, resolved = read_json(run.manifest), read_json(run.resolved)
    training, stored = read_json(run.training), read_json(evaluation / "scores.json")
    return ReportData(
        title=manifest["recipe"],
        run_name=run.name,
        created=manifest["created"],
        verdict=stored["verdict"],
        resolved=stored["resolved"],
        base_note=manifest["base"]["note"],
        task=resolved["recipe"]["data"]["task"],
        candidates=stored["candidates"],
        metrics=_headline_first(stored),
        scores=stored["scores"],
        differences=stored["differences"],
        groups=stored["groups"],
        rows=[_row(row) for row in read_jsonl(evaluation / "answers.jsonl")],
        curves=read_jsonl(run.metrics),
        best_step=training["best_step"],
        ledger=read_json(run.ledger)["sources"],
        data=_data_report(run, manifest),
        settings=settings(run),
        training=training,
        seconds={"training": training["seconds"], "evaluation": stored["seconds"]},
        seeds=stored.get("seeds", ()),
        exports=[_export(read_json(file)) for file in sorted(run.exports.glob("*.json"))],
        provenance=provenance(manifest),
        commands=commands(run),
        notes=stored["notes"],
        votes=str(Votes(run.votes).tally() or ""),
    )


def settings(run: Run) -> list[dict[str, Any]]:
    """Every field of the recipe, and why where `resolve` filled it.

    Of a run that was not trained here only what is known of it: the rest are mere defaults.
    """
    resolved = read_json(run.resolved)
    chosen, manifest = resolved["chosen"], read_json(run.manifest)
    fields = {
        f"{section}.{name}": value
        for section, values in resolved["recipe"].items()
        for name, value in values.items()
        if trained_here(manifest) or f"{section}.{name}" in chosen
    }
    # What has no field of its own (the pinned date of a template) is a setting too.
    fields |= {name: choice["value"] for name, choice in chosen.items() if name not in fields}
    return [
        {"field": name, "value": value, "because": chosen.get(name, {}).get("because", "")}
        for name, value in fields.items()
    ]


def provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> value of what made the run."""
    base, machine = manifest["base"], manifest["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    rates = ""
    if machine["bf16_tflops"] and machine["device"] == "cpu":
        rates = (
            f", matmul measured: bf16 {machine['bf16_tflops']:.2f}, "
            f"fp32 {machine['fp32_tflops']:.2f} TFLOP/s"
        )
    return {
        "base model": f"{base['name']} ({base['origin']}, {base['licence'] or 'licence unknown'})",
        "base sha256": base["sha256"],
        **_origin(manifest),
        **{f"{split} data sha256": value for split, value in manifest["data_sha256"].items()},
        "software": f"retone {manifest['retone']}, Python {manifest['python']}, {versions}",
        "machine": f"{machine['name']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB{rates}",
        "system": manifest["platform"],
        "seed": manifest["seed"],
        "git commit": manifest["git"] or "not a git checkout",
    }


def _origin(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Where the adapter of a run comes from that was not trained here."""
    if adopted := manifest.get("adopted"):
        return {"adapter": f"trained elsewhere: {adopted['folder']}, sha256 {adopted['sha256']}"}
    if blended := manifest.get("blended"):
        parts = ", ".join(f"{one['weight']:g} of {one['run']}" for one in blended["parents"])
        return {"adapter": f"blended ({blended['how']}): {parts}"}
    return {}


def commands(run: Run) -> list[dict[str, str]]:
    """How to go on."""
    return [
        {"command": f"retone chat {run.name}", "what": "talk to it"},
        {"command": f'retone ask {run.name} "..."', "what": "one answer"},
        {"command": f"retone evaluate {run.name} --test FILE", "what": "score it on other rows"},
        {"command": f"retone export {run.name} --to gguf", "what": "a checked file for llama.cpp"},
        {"command": f"retone compare {run.name} OTHER", "what": "side by side with another run"},
    ]


def _export(stored: Mapping[str, Any]) -> dict[str, Any]:
    """An export as the report shows it."""
    gate = Gate.from_json(stored["gate"])
    passed = "passed" if gate.complete else "kept, not all could be checked"
    return {
        "name": stored["name"],
        "outcome": passed if gate.ok else "blocked",
        "path": stored["path"] or "",
        "notes": stored["notes"],
        "rows": gate.rows(),
    }


def _data_report(run: Run, manifest: Mapping[str, Any]) -> DataReport | None:
    """What was found about the data before training, where that was here."""
    if not trained_here(manifest):
        return None
    sources = read_json(run.ledger)["sources"]
    return DataReport(
        title=manifest["recipe"],
        created=manifest["created"],
        verdict="",
        sources=sources,
        tokens=(),
        **read_json(run.data / "diagnosis.json"),
    )


def _headline_first(stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(stored["metrics"], key=lambda metric: metric["name"] != stored["headline"])


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "answers": {name: given["text"] for name, given in row["answers"].items()}}
