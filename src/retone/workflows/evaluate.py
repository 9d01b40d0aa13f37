"""`retone evaluate`: the same rows answered by every candidate, scored, compared, reported."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.config import SourceSection
from retone.conversation import Conversation, Document, Message
from retone.data.sources import source_sha256
from retone.data.spool import read_texts
from retone.data.tasks import LOOKED_AT, found_task
from retone.errors import CheckFailed, InputError, nearest
from retone.evaluation.candidates import Candidate, answer_all, candidates
from retone.evaluation.groups import group_scores
from retone.evaluation.metrics import METRICS, Metric, RowScores, row_scores, sentence_scores
from retone.evaluation.statistics import Difference, adjust, difference, score
from retone.evaluation.style import written_instruction
from retone.evaluation.texts import METRICS as TEXT_METRICS
from retone.evaluation.texts import in_two, text_candidates
from retone.evaluation.verdict import verdict
from retone.inference.sampling import Answer
from retone.run_dir import (
    Run,
    file_sha256,
    fingerprint,
    read_json,
    runs_root,
    write_json,
    write_jsonl,
)
from retone.workflows.adopt import run_or_adapter, trained_here
from retone.workflows.create import another_test, read_samples_of, require_rows
from retone.workflows.load import Tuned, load, read_split
from retone.workflows.report import write_report

# What the verdict is about, by task.
HEADLINE = {
    "rewrite": "bleu",
    "chat": "chrf",
    "qa": "keyword_recall",
    "structured": "json_fields",
    "text": "perplexity",
}


@dataclass(frozen=True)
class Evaluated:
    """The stored result of an evaluation (evaluation/scores.json)."""

    run: Run
    stored: dict[str, Any]
    report: Path

    @property
    def verdict(self) -> str:
        """One sentence: tuned against the strongest candidate without training."""
        return str(self.stored["verdict"])

    def as_json(self) -> dict[str, Any]:
        """The object of `retone evaluate --json`."""
        names = ("verdict", "scores", "differences", "groups", "instruction", "seconds")
        found = {name: self.stored[name] for name in names}
        return {"run": str(self.run.path), "report": str(self.report), **found}

    def show(self) -> None:
        """Print the score table and the verdict."""
        console.out().print(score_table(self.stored))
        if self.stored["groups"]:
            console.out().print(group_table(self.stored))
        console.out().print(escape(self.verdict), style="bold", soft_wrap=True)
        console.out().print(f"report: {escape(str(self.report))}", soft_wrap=True)


def evaluate(run: Run, *, test: str | None = None, offline: bool = False) -> Evaluated:
    """Answer and score the run's test rows, or those of another file of the same shape.

    Writes answers.jsonl, scores.json and the report. Raises InputError when there are no rows.
    """
    started = time.perf_counter()
    recipe = read_json(run.resolved)["recipe"]
    source = another_test(recipe, test) if test else None
    rows = _rows(run, recipe, source)[: recipe["evaluate"]["limit"]]
    require_rows(len(rows), "test")
    # A run that was not trained here has no rows that could have told the task.
    task = recipe["data"]["task"] if recipe["data"]["task"] != "auto" else found_task(rows)[0]
    folder = run.evaluation(_folder_name(source) if source else "")
    tuned = load(run, offline=offline)
    shown = [] if test else [_asked(tuned, text) for text in recipe["data"]["showcase"]]
    instruction = recipe["evaluate"]["instruction"] or written_instruction(
        read_split(run, "train", LOOKED_AT), recipe["data"]["system"]
    )
    asked = _candidates(run, tuned, task, instruction)
    answers, scores = _answer_and_score(asked, tuned, rows, shown)
    differences = _differences(scores)
    headline = _headline(task, scores["tuned"])
    groups = [str(row.extra.get(recipe["evaluate"]["group_by"], "")) for row in rows]
    leading = [d for d in differences if d.metric.name == headline]
    stored = {
        "verdict": verdict(leading),
        "headline": headline,
        "resolved": any(d.resolved for d in leading) and "not resolved" not in verdict(leading),
        "candidates": [{"name": c.name, "label": c.label, "what": c.what} for c in asked],
        "metrics": [_metric_facts(rows.metric) for rows in scores["tuned"].values()],
        "scores": {
            name: {metric: asdict(score(found)) for metric, found in by.items()}
            for name, by in scores.items()
        },
        "differences": _difference_table(differences),
        "groups": group_scores(scores, groups, (headline, *TERMINAL_METRICS)),
        "notes": _notes(leading),
        "instruction": instruction,
        "sampling": asdict(tuned.sampling),
        "seconds": time.perf_counter() - started,
    }
    report = folder / "report.html" if test else run.report
    with run.locked():
        if not test and run.scores.is_file():  # the other seeds' scores stay
            stored |= {"seeds": read_json(run.scores).get("seeds", [])}
        write_jsonl(folder / "answers.jsonl", _answer_rows(rows, shown, answers))
        write_json(folder / "scores.json", stored)
        write_report(run, folder, report)
    return Evaluated(run, stored, report)


def evaluate_run(
    run: str, *, test: str | None = None, fail_under: Sequence[str] = (), offline: bool = False
) -> Evaluated:
    """`evaluate` for the command line.

    Args:
        run: a run's directory, name, or latest; or the folder of an adapter.
        test: another test file.
        fail_under: thresholds of the tuned model such as "bleu=40".
        offline: never ask a network.

    Raises CheckFailed when a score is worse than its threshold.
    """
    limits = _limits(fail_under)
    found = evaluate(run_or_adapter(run, offline=offline), test=test, offline=offline)
    tuned = found.stored["scores"]["tuned"]
    problems = []
    for name, limit in limits.items():
        value = tuned.get(name, {"value": None})["value"]
        worse = value is None or (
            value < limit if METRICS[name].higher_is_better else value > limit
        )
        if worse:
            problems.append(
                f"{name} {'none' if value is None else f'{value:.2f}'}, asked {limit:g}"
            )
    if problems:
        found.show()
        raise CheckFailed(
            "the tuned model is under the threshold",
            "; ".join(problems),
            "train longer or on more rows, or lower --fail-under",
            "fail-under",
        )
    return found


def read_evaluation(run: Run) -> Evaluated:
    """The stored evaluation of a finished run."""
    return Evaluated(run, read_json(run.scores), run.report)


def score_table(stored: Mapping[str, Any]) -> Any:
    """Candidates by metrics, with intervals for the headline metric."""
    metrics = [m["name"] for m in stored["metrics"] if m["name"] in TERMINAL_METRICS]
    head = stored["headline"]
    rows = []
    for candidate in stored["candidates"]:
        by = stored["scores"][candidate["name"]]
        cells = [_cell(by.get(metric), interval=metric == head) for metric in metrics]
        rows.append([candidate["label"], *cells])
    labels = [METRICS[metric].label for metric in metrics]
    n = stored["scores"]["tuned"][head]["n"]
    return console.table(f"{n} held-out rows", ["", *labels], rows)


def group_table(stored: Mapping[str, Any]) -> Any:
    """Groups of rows by candidates, under the headline metric."""
    head = stored["headline"]
    rows = []
    for group, by in stored["groups"].items():
        cells = [_cell(by[c["name"]].get(head), interval=True) for c in stored["candidates"]]
        n = by["tuned"][head]["n"]
        rows.append([group or "(none)", str(n), *cells])
    labels = [candidate["label"] for candidate in stored["candidates"]]
    return console.table(f"{METRICS[head].label} by group", ["", "rows", *labels], rows)


TERMINAL_METRICS = (
    "bleu", "chrf", "ter", "rougeL", "exact", "keyword_recall", "json_valid", "json_fields",
    "perplexity",
)  # fmt: skip


def _rows(run: Run, recipe: Mapping[str, Any], source: SourceSection | None) -> list[Conversation]:
    """The test rows; plain texts as what is shown of them and what is to follow."""
    text = recipe["data"]["task"] == "text"
    if source is None and not trained_here(read_json(run.manifest)):
        raise InputError(
            "the run has no test rows of its own",
            f"{run.name} was not trained here: its rows are not known",
            f"retone evaluate {run.name} --test FILE",
            "no-rows",
        )
    if source is None:
        return in_two(read_texts(run.split("test"))) if text else read_split(run, "test")
    samples = read_samples_of(recipe, source)
    if text:
        return in_two([sample for sample in samples if isinstance(sample, Document)])
    return [sample for sample in samples if isinstance(sample, Conversation)]


def _headline(task: str, tuned: Mapping[str, RowScores]) -> str:
    """The task's metric; chrF where the rows do not carry what that needs."""
    name = HEADLINE[task]
    return name if name in tuned and tuned[name].value is not None else "chrf"


def _cell(found: Mapping[str, Any] | None, *, interval: bool) -> str:
    if found is None or found["value"] is None:
        return "no score"
    text = f"{found['value']:.1f}"
    if interval and found["low"] is not None:
        text += f" ({found['low']:.1f} to {found['high']:.1f})"
    return text


def _folder_name(source: SourceSection) -> str:
    """A name for the evaluation on another test file, with its content's hash."""
    word = re.sub(r"[^\w.-]+", "-", Path(source.path).stem)
    return f"{word}-{source_sha256(source)[:8]}"


def _candidates(run: Run, tuned: Tuned, task: str, instruction: str) -> list[Candidate]:
    manifest, recipe = read_json(run.manifest), read_json(run.resolved)["recipe"]
    lock = read_json(run.template_lock)
    model = recipe["model"]
    settings = [model["dtype"], model["quantization"], model["attention"], lock["template_sha256"]]
    base = fingerprint(manifest["base"]["sha256"], settings, manifest["machine"]["device"])
    files = [*run.tuned.glob("*.safetensors"), *run.tuned.glob("adapter_config.json")]
    after = fingerprint(base, [file_sha256(file) for file in sorted(files)])
    if task == "text":
        return text_candidates(tuned.engine, base=base, tuned=after)
    return candidates(tuned.engine, task=task, instruction=instruction, base=base, tuned=after)


def _asked(tuned: Tuned, text: str) -> list[Message]:
    return tuned.messages(Message("user", text))


def _answer_and_score(
    asked: Sequence[Candidate],
    tuned: Tuned,
    rows: Sequence[Conversation],
    shown: Sequence[Sequence[Message]],
) -> tuple[dict[str, list[Answer]], dict[str, dict[str, RowScores]]]:
    """Answers to rows and showcase of every candidate, and the rows' statistics."""
    prompts = [*(row.prompt for row in rows), *shown]
    references = [row.answer for row in rows]
    keywords = [_keywords(row) for row in rows]
    answers: dict[str, list[Answer]] = {}
    scores: dict[str, dict[str, RowScores]] = {}
    with console.ticker() as tick:
        for candidate in asked:
            answers[candidate.name] = answer_all(
                candidate, prompts, tuned.sampling,
                folder=runs_root() / ".answers",
                chunk=tuned.engine.batch_size,
                tick=lambda done, total, who=candidate.name: tick(f"{who} answers", done, total),  # type: ignore[misc]
            )  # fmt: skip
            given = answers[candidate.name][: len(rows)]
            likelihood = candidate.likelihood
            text = tuned.resolved.recipe.data.task == "text"
            scores[candidate.name] = row_scores(
                [answer.text for answer in given],
                references,
                keywords=keywords if any(keywords) else None,
                stopped=[answer.stopped for answer in given] if likelihood else None,
                likelihoods=likelihood(rows) if likelihood else None,
                only=TEXT_METRICS if text else None,
            )
    return answers, scores


def _keywords(row: Conversation) -> list[str]:
    found = row.extra.get("answer_keywords", [])
    return [found] if isinstance(found, str) else list(found)


def _differences(scores: Mapping[str, Mapping[str, RowScores]]) -> list[Difference]:
    """Tuned minus every other candidate, one family of tests."""
    return adjust(
        [
            difference(found, rivals[metric], ("tuned", rival))
            for metric, found in scores["tuned"].items()
            for rival, rivals in scores.items()
            if rival != "tuned" and metric in rivals
        ]
    )


def _difference_table(differences: Sequence[Difference]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for found in differences:
        row = table.setdefault(f"{found.candidate}-{found.rival}", {})
        row[found.metric.name] = found.as_json()
    return table


def _notes(leading: Sequence[Difference]) -> list[str]:
    """What these rows can resolve, in words."""
    return [
        f"Against {d.rival}, these {d.n} rows resolve a difference of about "
        f"{d.detectable:.1f} {d.metric.label} or more (80 % power, {d.family} tests read together)."
        for d in leading
        if d.detectable
    ]


def _metric_facts(metric: Metric) -> dict[str, Any]:
    better = metric.higher_is_better
    unit = "%" if metric.bounds == (0.0, 100.0) and metric.name not in ("bleu", "chrf") else ""
    return {"name": metric.name, "label": metric.label, "higher_is_better": better,
            "signature": metric.signature, "unit": unit}  # fmt: skip


def _answer_rows(
    rows: Sequence[Conversation],
    shown: Sequence[Sequence[Message]],
    answers: Mapping[str, Sequence[Answer]],
) -> list[dict[str, Any]]:
    """One line a prompt: reference, everyone's answer, and what training gained (sentence chrF)."""
    references = [row.answer for row in rows]
    by_row = {
        name: sentence_scores([answer.text for answer in given[: len(rows)]], references)
        for name, given in answers.items()
    }
    asked = [(row.question, row.answer, False) for row in rows]
    asked += [(messages[-1].content, "", True) for messages in shown]
    made = []
    for index, (prompt, reference, showcase) in enumerate(asked):
        gain = None
        if not showcase:
            rivals = [s[index] or 0.0 for name, s in by_row.items() if name != "tuned"]
            gain = (by_row["tuned"][index] or 0.0) - max(rivals)
        given = {name: asdict(found[index]) for name, found in answers.items()}
        made.append({"prompt": prompt, "reference": reference, "showcase": showcase,
                     "gain": gain, "answers": given})  # fmt: skip
    return made


def _limits(given: Sequence[str]) -> dict[str, float]:
    limits = {}
    for item in given:
        name, _, number = item.partition("=")
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = float("nan")
        if name not in METRICS or limits[name] != limits[name]:
            raise InputError(
                "--fail-under needs METRIC=NUMBER",
                f"{item!r}{nearest(name, METRICS)}",
                f"--fail-under bleu=40   (known: {', '.join(METRICS)})",
                "wrong-threshold",
            )
    return limits
