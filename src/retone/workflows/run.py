"""`retone run`: prepare, train, evaluate, show; what is done already is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.config import load_recipe
from retone.evaluation.metrics import MetricValue
from retone.run_dir import Run, read_json
from retone.workflows.create import create
from retone.workflows.evaluate import Scores, evaluate, pairs, read_scores
from retone.workflows.train import train as train_run

SHOWN_PAIRS = 6


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run: Run
    scores: Scores
    seconds: dict[str, float]

    @property
    def verdict(self) -> str:
        """Tuned against the strongest candidate without training, in BLEU."""
        tuned = self.scores["tuned"]["bleu"]
        rivals = {name: s["bleu"].value for name, s in self.scores.items() if name != "tuned"}
        best = max(rivals, key=lambda name: rivals[name])
        difference = tuned.value - rivals[best]
        word = "beats" if difference > 0 else "does not beat"
        return f"tuned {word} {best}: {difference:+.1f} BLEU on {tuned.n} held-out rows"

    def as_json(self) -> dict[str, Any]:
        """The object of `retone run --json`."""
        return {
            "run": str(self.run.path),
            "report": None,
            "verdict": self.verdict,
            "scores": {n: {m: asdict(v) for m, v in by.items()} for n, by in self.scores.items()},
            "seconds": self.seconds,
            "examples": pairs(self.run, SHOWN_PAIRS),
        }

    def show(self) -> None:
        """Print scores and before/after pairs."""
        to = console.out()
        metrics = list(next(iter(self.scores.values())))
        rows = [
            [name, *(f"{by[metric].value:.1f}" for metric in metrics), str(by[metrics[0]].n)]
            for name, by in self.scores.items()
        ]
        to.print(console.table("held-out rows", ["", *metrics, "n"], rows))
        first: MetricValue = self.scores["tuned"][metrics[0]]
        to.print(f"{metrics[0]}: {first.signature}", style="dim")
        for pair in pairs(self.run, SHOWN_PAIRS):
            to.print()
            to.print(f"  {escape(pair['prompt'])}", style="bold", soft_wrap=True)
            to.print(
                f"  before  {escape(_line(pair['answers']['base']['text']))}",
                style="dim",
                soft_wrap=True,
            )
            to.print(
                f"  after   {escape(_line(pair['answers']['tuned']['text']))}",
                style="green",
                soft_wrap=True,
            )
        base = read_json(self.run.manifest)["base"]
        to.print()
        if base["note"]:
            to.print(escape(f"base model: {base['note']}"), style="dim", soft_wrap=True)
        to.print(escape(self.verdict), style="bold")
        to.print(
            f"run: {escape(str(self.run.path))}   next: retone chat {escape(self.run.name)}",
            soft_wrap=True,
        )


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

    Finished: shown. Interrupted: resumed. Anything different, or `fresh`: a new run.

    Args:
        recipe: a bundled name or a TOML path.
        flags: the six fields that people type (model, train, test, epochs, seed).
        sets: further fields as "section.field=value".
        name: name of a new run; the recipe's by default.
        fresh: start a new run although there is one.
        offline: never ask a network.
    """
    settings = load_recipe(recipe, flags=flags, sets=sets)
    found = create(settings, name=name or Path(recipe).stem, fresh=fresh, offline=offline)
    console.note(f"run {found.path} ({found.status})")
    if found.status == "interrupted":
        train_run(found, offline=offline)
    scores = read_scores(found) if found.status == "finished" else evaluate(found, offline=offline)
    seconds = {
        "train": read_json(found.training)["seconds"],
        "evaluate": read_json(found.scores)["seconds"],
    }
    return RunResult(found, scores, seconds)


def _line(text: str) -> str:
    """An answer on one line, cut for the terminal only."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else flat[:159] + "…"
