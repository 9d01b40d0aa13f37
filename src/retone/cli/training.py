"""How a model is made and judged: run, train, evaluate, compare."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from retone.cli.options import (
    Call,
    Debug,
    Epochs,
    Fresh,
    Json,
    Model,
    Name,
    Offline,
    RecipeArg,
    RunArg,
    Seed,
    Sets,
    Test,
    Train,
    given,
)


def run_verb(
    recipe: RecipeArg, model: Model = None, train: Train = None, test: Test = None,
    epochs: Epochs = None, seed: Seed = None, name: Name = None, sets: Sets = None,
    fresh: Fresh = False, offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Prepare, train, evaluate and report; the same recipe again shows or resumes the run."""
    from retone.workflows.run import run

    flags = given(model=model, train=train, test=test, epochs=epochs, seed=seed)
    return partial(
        run, recipe, flags=flags, sets=sets or (), name=name, fresh=fresh, offline=offline
    )


def train_verb(
    recipe: RecipeArg, model: Model = None, train: Train = None, test: Test = None,
    epochs: Epochs = None, seed: Seed = None, name: Name = None, sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run.")] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Only train: a new run, or with --resume the newest one of the same recipe and data."""
    from retone.workflows.train import train_recipe

    flags = given(model=model, train=train, test=test, epochs=epochs, seed=seed)
    return partial(
        train_recipe,
        recipe,
        flags=flags,
        sets=sets or (),
        name=name,
        resume=resume,
        offline=offline,
    )


def evaluate_verb(
    run: RunArg,
    test: Annotated[str | None, typer.Option(help="Another test file of the same shape.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=NUMBER", help="Exit 1 when tuned is worse; repeatable."),
    ] = None,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Answer and score the held-out rows again, or another file, with every candidate."""
    from retone.workflows.evaluate import evaluate_run

    return partial(evaluate_run, run, test=test, fail_under=fail_under or (), offline=offline)


def compare_verb(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Finished runs.")],
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Show which settings differ between runs, and whether their answers do."""
    from retone.workflows.compare import compare

    return partial(compare, runs)
