"""`retone run`: prepare, train, evaluate, show; what is done already is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.config import Recipe
from retone.evaluation.statistics import Spread, spread
from retone.recipe_file import find_recipe, load_recipe
from retone.run_dir import Run, read_json, read_jsonl, write_json
from retone.workflows.create import create
from retone.workflows.evaluate import Evaluated, evaluate, read_evaluation, score_table
from retone.workflows.report import write_report
from retone.workflows.train import train

SHOWN_PAIRS = 6
SHOWN_CHARACTERS = 160  # of each of their answers


@dataclass(frozen=True)
class RunResult:
    """A finished run: its evidence, its report, its times."""

    run: Run
    evaluated: Evaluated

    @property
    def verdict(self) -> str:
        """One sentence: tuned against the strongest candidate without training."""
        return self.evaluated.verdict

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.run.report

    @property
    def scores(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Candidate -> metric -> value, low, high, n."""
        found: dict[str, dict[str, dict[str, Any]]] = self.evaluated.stored["scores"]
        return found

    def as_json(self) -> dict[str, Any]:
        """The object of `retone run --json`."""
        stored = self.evaluated.stored
        train_seconds = read_json(self.run.training)["seconds"]
        return {
            "run": str(self.run.path),
            "report": str(self.report),
            "verdict": self.verdict,
            "scores": self.scores,
            "differences": stored["differences"],
            "signatures": {m["name"]: m["signature"] for m in stored["metrics"]},
            "seconds": {"train": train_seconds, "evaluate": stored["seconds"]},
            "seeds": stored.get("seeds", []),
            "base_note": read_json(self.run.manifest)["base"]["note"],
            "examples": pairs(self.run, SHOWN_PAIRS),
        }

    def show(self) -> None:
        """Print before/after pairs, scores, the verdict and the report's path."""
        to = console.out()
        for pair in pairs(self.run, SHOWN_PAIRS):
            before, after = (
                console.one_line(pair["answers"][who]["text"], SHOWN_CHARACTERS)
                for who in ("base", "tuned")
            )
            to.print(f"  {escape(pair['prompt'])}", style="bold", soft_wrap=True)
            to.print(f"  before  {escape(before)}", style="dim", soft_wrap=True)
            to.print(f"  after   {escape(after)}\n", style="green", soft_wrap=True)
        stored = self.evaluated.stored
        to.print(score_table(stored))
        metric = next(m for m in stored["metrics"] if m["name"] == stored["headline"])
        to.print(f"{metric['label']}: {metric['signature']}", style="dim", soft_wrap=True)
        note = read_json(self.run.manifest)["base"]["note"]
        if note:
            to.print(escape(f"base model: {note}"), style="dim", soft_wrap=True)
        for line in _seed_lines(stored):
            to.print(escape(line), soft_wrap=True)
        to.print(escape(f"\n{self.verdict}"), style="bold", soft_wrap=True)
        to.print(f"report: {escape(str(self.report))}", soft_wrap=True)
        to.print(f"next:   retone chat {escape(self.run.name)}", soft_wrap=True)


def run(
    recipe: str,
    *,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    name: str | None = None,
    fresh: bool = False,
    offline: bool = False,
) -> RunResult:
    """From a recipe to evidence; the newest run of the same recipe and data is reused.

    Finished: shown. Interrupted: resumed. Anything different, or `fresh`: a new run. With
    `train.seeds` one run a seed is made; the first one's report shows the spread.

    Args:
        recipe: a bundled name or a TOML path.
        flags: the fields that people type (model, train, test, epochs, seed).
        sets: further fields as "section.field=value".
        name: name of a new run; the recipe's by default.
        fresh: start a new run although there is one.
        offline: never ask a network.
    """
    settings = load_recipe(recipe, flags=flags, sets=sets)
    name = name or find_recipe(recipe).stem
    results = []
    for seed in settings.train.seeds or [settings.train.seed]:
        one = _with_seed(settings, seed)
        found = create(one, name=name, fresh=fresh, offline=offline)
        console.note(f"{found.path}: {found.told}")
        if found.status in ("new", "interrupted"):
            train(found, offline=offline)
        done = found.status == "finished"
        results.append(read_evaluation(found) if done else evaluate(found, offline=offline))
    if len(results) > 1:
        _store_spread(results, settings.train.seeds)
    return RunResult(results[0].run, read_evaluation(results[0].run))


def pairs(run: Run, count: int) -> list[dict[str, Any]]:
    """The first `count` showcase prompts (then test rows) with everyone's answers."""
    rows = read_jsonl(run.answers)
    return sorted(rows, key=lambda row: not row["showcase"])[:count]


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    train = recipe.train.model_copy(update={"seed": seed, "seeds": []})
    return recipe.model_copy(update={"train": train})


def _store_spread(results: Sequence[Evaluated], seeds: Sequence[int]) -> None:
    """Put every seed's tuned scores into the first run, and draw its report again."""
    first = results[0]
    values = [
        {
            "seed": seed,
            "run": result.run.name,
            "scores": {m: s["value"] for m, s in result.stored["scores"]["tuned"].items()},
        }
        for seed, result in zip(seeds, results, strict=True)
    ]
    write_json(first.run.scores, {**first.stored, "seeds": values})
    write_report(first.run, first.run.evaluation(), first.run.report)


def _seed_lines(stored: Mapping[str, Any]) -> list[str]:
    """The headline metric over seeds, where there were several."""
    if not stored.get("seeds"):
        return []
    head = stored["headline"]
    values = [row["scores"][head] for row in stored["seeds"]]
    found: Spread = spread([value for value in values if value is not None])
    names = ", ".join(str(row["seed"]) for row in stored["seeds"])
    return [f"over seeds {names}: {head} {found}"]
