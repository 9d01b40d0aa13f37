"""`retone compare`: what differs between runs, and whether their answers differ more than luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.errors import InputError
from retone.evaluation.metrics import METRICS, row_scores, sentence_scores
from retone.evaluation.report import ReportData, render_report
from retone.evaluation.statistics import Difference, adjust, difference, score
from retone.evaluation.verdict import verdict
from retone.run_dir import Run, fingerprint, read_json, read_jsonl, runs_root, write_whole
from retone.workflows.adopt import run_or_adapter
from retone.workflows.report import commands, settings

Answers = dict[str, list[dict[str, Any]]]  # run name -> rows of answers.jsonl


@dataclass(frozen=True)
class Compared:
    """Several runs on the rows that all of them answered."""

    runs: list[Run]
    differing: list[dict[str, Any]]
    scores: dict[str, dict[str, Any]]
    differences: list[Difference]
    headline: str
    report: Path

    @property
    def verdict(self) -> str:
        """The last run against the others, in the headline metric."""
        return verdict([d for d in self.differences if d.metric.name == self.headline])

    def as_json(self) -> dict[str, Any]:
        """The object of `retone compare --json`."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "report": str(self.report),
            "verdict": self.verdict,
            "settings": self.differing,
            "scores": self.scores,
            "differences": _table(self.differences),
        }

    def show(self) -> None:
        """Print settings that differ, scores, and the verdict."""
        to = console.out()
        names = [run.name for run in self.runs]
        rows = [[row["field"], *(str(row["values"][name]) for name in names)]
                for row in self.differing]  # fmt: skip
        to.print(console.table("settings that differ", ["", *names], rows or [["none"]]))
        metrics = [m for m in ("bleu", "chrf", "ter", "rougeL", "exact") if m in METRICS]
        rows = [[METRICS[metric].label, *(_cell(self.scores[name][metric]) for name in names)]
                for metric in metrics]  # fmt: skip
        to.print(console.table("tuned answers", ["", *names], rows))
        to.print(escape(self.verdict), style="bold", soft_wrap=True)
        to.print(f"report: {escape(str(self.report))}", soft_wrap=True)


def compare(names: Sequence[str]) -> Compared:
    """Compare the tuned answers of evaluated runs on the test rows that they share.

    Those are rows of their own test files, and of others that they were evaluated on. Every run is
    compared with the last one named. Writes one HTML page beside the runs. Raises InputError for
    fewer than two runs, one that is not evaluated, or no row in common.
    """
    runs = [run_or_adapter(name) for name in names]
    _check(runs)
    shared = _shared_rows({run.name: _answered(run) for run in runs})
    first = next(iter(shared.values()))
    references = [row["reference"] for row in first]
    texts = {
        name: [row["answers"]["tuned"]["text"] for row in rows] for name, rows in shared.items()
    }
    found = {name: row_scores(answers, references) for name, answers in texts.items()}
    last = runs[-1].name
    differences = adjust(
        [
            difference(rows, found[rival][metric], (last, rival))
            for metric, rows in found[last].items()
            for rival in found
            if rival != last
        ]
    )
    scores = {n: {m: asdict(score(r)) for m, r in by.items()} for n, by in found.items()}
    stored = read_json(_evaluations(runs[-1])[0] / "scores.json")
    key = fingerprint([run.name for run in runs])[:8]
    result = Compared(
        runs,
        differing_settings(runs),
        scores,
        differences,
        stored["headline"],
        runs_root() / f"compare-{key}.html",
    )
    write_whole(result.report, render_report(_page(result, first, texts, references)))
    return result


def differing_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Fields whose values are not the same in all runs: {field, values: {run: value}}."""
    values = {run.name: {row["field"]: row["value"] for row in settings(run)} for run in runs}
    fields = dict.fromkeys(field for by in values.values() for field in by)
    rows = [{"field": f, "values": {n: by.get(f) for n, by in values.items()}} for f in fields]
    return [row for row in rows if len({repr(v) for v in row["values"].values()}) > 1]


def _check(runs: Sequence[Run]) -> None:
    names = [run.name for run in runs]
    unfinished = [f"{run.name} ({run.status})" for run in runs if not _evaluations(run)]
    if len(set(names)) < 2:
        raise InputError(
            "two different runs or more are compared", f"given: {', '.join(names)}",
            "retone compare RUN RUN   (retone runs lists them)", "too-few-runs",
        )  # fmt: skip
    if unfinished:
        raise InputError(
            "only evaluated runs are compared", ", ".join(unfinished),
            "retone run RECIPE   (the same recipe finishes it), or retone evaluate RUN --test FILE",
            "not-finished",
        )  # fmt: skip

    tasks = {run.name: read_json(run.resolved)["recipe"]["data"]["task"] for run in runs}
    texts = [name for name, task in tasks.items() if task == "text"]
    if texts:
        raise InputError(
            "runs of plain text have no answers to compare", ", ".join(texts),
            "compare the perplexity in their reports: both on the same test file", "plain-text",
        )  # fmt: skip


def _evaluations(run: Run) -> list[Path]:
    """Folders of a run's evaluations, the one on its own test rows first."""
    folders = [file.parent for file in run.evaluation().rglob("scores.json")]
    return sorted(folders, key=lambda folder: (folder != run.evaluation(), folder))


def _answered(run: Run) -> list[dict[str, Any]]:
    """Every row that a run was evaluated on."""
    return [row for folder in _evaluations(run) for row in read_jsonl(folder / "answers.jsonl")]


def _shared_rows(answers: Answers) -> Answers:
    """The test rows that every run answered, in the first run's order."""
    keyed = {
        name: {(row["prompt"], row["reference"]): row for row in rows if not row["showcase"]}
        for name, rows in answers.items()
    }
    common = set.intersection(*(set(rows) for rows in keyed.values()))
    if not common:
        raise InputError(
            "the runs share no test row", f"compared: {', '.join(answers)}",
            "run both recipes with the same test file: --test FILE", "nothing-shared",
        )  # fmt: skip
    order = [key for key in next(iter(keyed.values())) if key in common]
    return {name: [rows[key] for key in order] for name, rows in keyed.items()}


def _page(
    result: Compared,
    rows: Sequence[Mapping[str, Any]],
    texts: Mapping[str, Sequence[str]],
    references: Sequence[str],
) -> ReportData:
    """The report's look for a comparison: the last run takes the place of the tuned model."""
    last = result.runs[-1].name

    def key(name: str) -> str:
        return "tuned" if name == last else name

    by_row = {name: sentence_scores(list(answers), references) for name, answers in texts.items()}
    shown = [
        {
            "prompt": row["prompt"],
            "reference": row["reference"],
            "showcase": False,
            "gain": (by_row[last][i] or 0.0) - max(by_row[n][i] or 0.0 for n in texts if n != last),
            "answers": {key(name): answers[i] for name, answers in texts.items()},
        }
        for i, row in enumerate(rows)
    ]
    head = [METRICS[result.headline], *(m for n, m in METRICS.items() if n != result.headline)]
    manifest = read_json(result.runs[-1].manifest)
    return ReportData(
        title="comparison",
        run_name=" / ".join(texts),
        created=manifest["created"],
        verdict=result.verdict,
        resolved=not result.verdict.startswith(("not resolved", "no verdict")),
        base_note=manifest["base"]["note"],
        candidates=[{"name": key(n), "label": n, "what": f"tuned model of {n}"} for n in texts],
        metrics=[{"name": m.name, "label": m.label, "higher_is_better": m.higher_is_better,
                  "signature": m.signature, "unit": ""}
                 for m in head if m.name in result.scores[last]],
        scores={key(name): by for name, by in result.scores.items()},
        differences=_table(result.differences, as_tuned=True),
        rows=shown,
        settings=[{"field": row["field"], "value": row["values"],
                   "because": " / ".join(f"{n}: {v}" for n, v in row["values"].items())}
                  for row in result.differing],
        commands=commands(result.runs[-1]),
    )  # fmt: skip


def _table(found: Sequence[Difference], *, as_tuned: bool = False) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for each in found:
        row = table.setdefault(f"{'tuned' if as_tuned else each.candidate}-{each.rival}", {})
        row[each.metric.name] = each.as_json()
    return table


def _cell(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "no score"
    if found["low"] is None:
        return f"{found['value']:.1f}"
    return f"{found['value']:.1f} ({found['low']:.1f} to {found['high']:.1f})"
