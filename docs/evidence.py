"""Pages of committed results: docs/results.md and the README's evidence, from JSON files alone.

These files are what `proof/record.py` writes: where it comes from (`date`, `commit`,
`changed_files`, `versions`, `python`, `machine`), and the findings. `scores`, `differences`,
`signatures`, `seconds` and `examples` have the form of `retone run --json` and get tables, and so
do the candidates of a benchmark; every other finding is listed, long lists left out.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retone.evaluation.metrics import METRICS

REQUIRED = ("date", "commit", "versions", "machine")
ORIGIN = {*REQUIRED, "changed_files", "python"}
OWN_FORM = {*ORIGIN, "scores", "differences", "signatures", "examples"}
OWN_PAGE = ("methods", "presets")  # proofs that docs/methods.md is made of
CANDIDATES = ("copy", "base", "prompted", "tuned")
# Fields of a benchmark's candidates that get a column: title, divisor, decimals.
COLUMNS = {
    "rows_per_s": ("rows/s", 1, 2),
    "peak_rss_bytes": ("peak memory, GB", 1e9, 2),
    "seconds_total_training": ("training, s", 1, 1),
    "test_loss": ("test loss", 1, 4),
}
LONGEST_LIST = 24
NO_PROOF = "No proof run is committed yet."
NO_BENCHMARK = "No benchmark is committed yet."
NO_SCORES = "No proof run with scores is committed yet."
MADE_BY = "<!-- made by docs/generate.py: edit that, not this -->"


def read_proofs(root: Path, lane: str = "proof") -> dict[str, dict[str, Any]]:
    """Name -> content of a lane's files; a file without what is required is an error."""
    proofs = {}
    for path in sorted((root / lane / "results").glob("*.json")):
        proof = json.loads(path.read_text("utf-8"))
        missing = [key for key in REQUIRED if not proof.get(key)]
        if missing:
            raise SystemExit(f"docs/generate.py: {path.name} lacks {', '.join(missing)}")
        proofs[path.stem] = proof
    return proofs


def results_page(proofs: dict[str, dict[str, Any]], benchmarks: dict[str, dict[str, Any]]) -> str:
    """docs/results.md."""
    lines = [
        "# Results", MADE_BY, "",
        "Each section is one committed file of `proof/results` or `benchmarks/results`. No other",
        "figures of quality or speed are claimed. Scores and differences stand with their 95 %",
        "interval where they have one.",
    ]  # fmt: skip
    if not proofs:
        lines += ["", NO_PROOF]
    for name, proof in proofs.items():
        if name in OWN_PAGE:
            lines += [*origin_lines(name, proof), "", "The figures: [methods](methods.md)."]
            continue
        findings = {key: value for key, value in proof.items() if key not in OWN_FORM}
        lines += [*origin_lines(name, proof), *finding_lines(findings)]
        lines += score_lines(proof) if "scores" in proof else []
        lines += example_lines(proof["examples"]) if "examples" in proof else []
    if not benchmarks:
        lines += ["", NO_BENCHMARK]
    for name, benchmark in benchmarks.items():
        measured = measured_candidates(benchmark)
        own = ORIGIN | {"peers"} | measured.keys()
        findings = {key: value for key, value in benchmark.items() if key not in own}
        lines += [*origin_lines(name, benchmark), *finding_lines(findings)]
        lines += candidate_lines(measured) if measured else []
        lines += ["", "What is measured, and how: [benchmarks](../benchmarks/README.md)."]
    return "\n".join(lines) + "\n"


def origin_lines(name: str, proof: dict[str, Any]) -> list[str]:
    """The head of a section: where the figures come from."""
    versions = ", ".join(f"{item} {version}" for item, version in proof["versions"].items())
    changed = proof.get("changed_files")
    return [
        "", f"## {name}", "", "| | |", "|---|---|",
        f"| date | {proof['date']} |",
        f"| commit | `{proof['commit']}`{f', {changed} files changed' if changed else ''} |",
        f"| machine | {machine_of(proof)} |",
        f"| versions | {versions} |",
    ]  # fmt: skip


def finding_lines(findings: dict[str, Any]) -> list[str]:
    """One row of a table for each finding; lists that nobody reads stay in the file."""
    return [
        f"| {key} | {cell(value)} |"
        for key, value in flat(findings)
        if not isinstance(value, list) or is_short(value)
    ]


def is_short(values: list[Any]) -> bool:
    """A list that fits a cell of a table."""
    return len(values) <= LONGEST_LIST and not any(isinstance(v, list | dict) for v in values)


def measured_candidates(benchmark: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> figures of everything that a benchmark ran, ours first."""
    named = {**benchmark, **benchmark.get("peers", {})}
    return {
        name: found
        for name, found in named.items()
        if isinstance(found, dict) and ("not_run" in found or COLUMNS.keys() & found.keys())
        if name != "ratio"
    }


def candidate_lines(measured: dict[str, dict[str, Any]]) -> list[str]:
    """The candidates of a benchmark as a table."""
    titles = [title for title, _, _ in COLUMNS.values()]
    lines = ["", f"| candidate | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, found in measured.items():
        cells = [
            f"{found[key] / by:.{digits}f}" if key in found else ""
            for key, (_, by, digits) in COLUMNS.items()
        ]
        if "not_run" in found:
            cells[0] = f"not run: {cell(found['not_run'])}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cores(count: int) -> str:
    return f"{count} core{'s' if count > 1 else ''}"


def machine_of(proof: dict[str, Any]) -> str:
    """Processor, cores, memory, and the measured rates where there are some."""
    machine = proof["machine"]
    parts = [
        machine["name"],
        _cores(machine["cores"]),
        f"{machine['memory_bytes'] / 1e9:.0f} GB",
    ]
    if machine["device"] == "cpu" and machine["bf16_tflops"]:
        rates = (machine["bf16_tflops"], machine["fp32_tflops"])
        parts.append("bf16 {:.2f} and fp32 {:.2f} TFLOP/s".format(*rates))
    return ", ".join(parts)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every single value inside `value`; a list counts as one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def cell(value: Any) -> str:
    """A value as the cell of a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def score(entry: dict[str, Any] | None, *, signed: bool = False) -> str:
    """A score, or a signed difference, with its interval where it has one."""
    if not entry or entry.get("value") is None:
        return ""
    sign = "+" if signed else ""
    ends = (entry.get("low"), entry.get("high"))
    interval = "" if None in ends else " ({:{s}.1f} to {:{s}.1f})".format(*ends, s=sign)
    return f"{entry['value']:{sign}.1f}{interval}"


def score_lines(proof: dict[str, Any]) -> list[str]:
    """The scores of one run as tables, with what was computed below them."""
    scores = proof["scores"]
    metrics = list(dict.fromkeys(metric for by in scores.values() for metric in by))
    lines = ["", f"| score | {' | '.join(scores)} | rows |", "|---" * (len(scores) + 2) + "|"]
    for metric in metrics:
        found = [by.get(metric) for by in scores.values()]
        rows = max(entry["n"] for entry in found if entry)
        lines.append(f"| {metric} | {' | '.join(map(score, found))} | {rows} |")
    if differences := proof.get("differences"):
        lines += ["", f"| difference | {' | '.join(differences)} |"]
        lines += ["|---" * (len(differences) + 1) + "|"]
        for metric in metrics:
            cells = [score(by.get(metric), signed=True) for by in differences.values()]
            lines.append(f"| {metric} | {' | '.join(cells)} |")
    signatures = proof.get("signatures", {})
    return [*lines, "", *(f"- {name}: `{text}`" for name, text in signatures.items() if text)]


def example_lines(examples: list[dict[str, Any]]) -> list[str]:
    """Prompts with the answers, as they were written; before and after, where both were asked."""
    shown = [
        {"prompt": example["prompt"], "before": example["answers"]["base"]["text"],
         "after": example["answers"]["tuned"]["text"]} if "answers" in example else example
        for example in examples
    ]  # fmt: skip
    lines = ["", f"| {' | '.join(shown[0])} |", "|---" * len(shown[0]) + "|"]
    return lines + [f"| {' | '.join(map(cell, row.values()))} |" for row in shown]


def results_block(proofs: dict[str, dict[str, Any]], benchmarks: dict[str, dict[str, Any]]) -> str:
    """The README's evidence: one line for each proof file with scores, and the speed."""
    return "\n\n".join(filter(None, [evidence_table(proofs), speed_sentence(benchmarks)]))


def evidence_table(proofs: dict[str, dict[str, Any]]) -> str:
    """One line for each proof file with scores, under its headline metric."""
    scored = {name: proof for name, proof in proofs.items() if "tuned" in proof.get("scores", {})}
    if not scored:
        return NO_SCORES
    titles = ("metric", "copy", "base", "prompted", "**tuned**", "rows", "minutes", "machine")
    lines = [f"| held-out rows of | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, proof in scored.items():
        scores, machine, metric = proof["scores"], proof["machine"], proof["headline"]
        *others, tuned = (score(scores.get(who, {}).get(metric)) for who in CANDIDATES)
        minutes = f"{sum(proof['seconds'].values()) / 60:.1f}"
        where = f"{machine['name']}, {_cores(machine['cores'])}"
        rows = str(scores["tuned"][metric]["n"])
        label = METRICS[metric].label
        cells = (label, *others, f"**{tuned}**", rows, minutes, where)
        lines.append(f"| [{name}](docs/results.md#{name}) | {' | '.join(cells)} |")
    open_ = [name for name, proof in scored.items() if proof["verdict"].startswith("not resolved")]
    if open_:
        lines.append(f"\nThese rows cannot tell whether tuning won: {', '.join(open_)}.")
    notes = dict.fromkeys(proof["base_model"] for proof in scored.values() if "base_model" in proof)
    return "\n".join([*lines, *(f"\nBase model: {note}" for note in notes)])


def speed_sentence(benchmarks: dict[str, dict[str, Any]]) -> str:
    """What the CPU benchmark found; empty without one that ran a peer."""
    found = benchmarks.get("train_cpu", {})
    ratio = found.get("ratio", {})
    values = [ratio.get(name) for name in ("rows_per_s", "peak_memory", "test_loss")]
    if None in values:
        return ""
    ran = [name for name, peer in found.get("peers", {}).items() if "not_run" not in peer]
    text = (
        "Training on a CPU, beside the best of {} in each figure: {:.2f} times the rows a second, "
        "{:.2f} times the peak memory, {:.2f} times the test loss "
        "([how](docs/results.md#train_cpu))."
    ).format(", ".join(ran) or "its peers", *values)
    return wrapped(text)


def wrapped(text: str) -> str:
    """A paragraph in lines of at most 100 characters, where it can be."""
    return "\n".join(textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False))
