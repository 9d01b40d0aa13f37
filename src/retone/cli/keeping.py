"""What is kept and what is here: runs, cache, doctor."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from retone.cli.options import Call, Debug, Json, Offline


def runs_verb(
    delete: Annotated[list[str] | None, typer.Option(help="Delete this run; repeatable.")] = None,
    rename: Annotated[
        tuple[str, str] | None, typer.Option(metavar="RUN NAME", help="Give a run another name.")
    ] = None,
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """List the runs that are kept, with status and size."""
    from retone.workflows.runs import runs

    return partial(runs, delete=delete, rename=rename)


def cache_verb(
    delete: Annotated[list[str] | None, typer.Option(help="Delete this; repeatable.")] = None,
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """List the models, answers and prepared data that are kept, with their sizes."""
    from retone.workflows.cache import cache

    return partial(cache, delete=delete or ())


def doctor_verb(
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the default model now.")] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Show what this machine has, what is missing, and the command that mends it."""
    from retone.workflows.doctor import doctor

    return partial(doctor, fetch=fetch, offline=offline)
