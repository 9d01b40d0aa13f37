"""What a run is used for: ask, test, chat, serve, batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from retone.cli.options import Base, Call, Debug, Json, Offline, RunArg, given


def ask_verb(
    run: RunArg, text: Annotated[str, typer.Argument(help="What to ask.")],
    base: Base = False, offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Print one answer."""
    from retone.workflows.ask import ask

    return partial(ask, run, text, base=base, offline=offline)


def samples_verb(
    run: RunArg = "latest",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The JSON to write; in the run's folder.")
    ] = None,
    talk: Annotated[bool, typer.Option("--chat", help="Go on with a conversation.")] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Ask the recipe's sample questions, of both models, and keep the answers."""
    from retone.workflows.samples import sample_answers

    return partial(sample_answers, run, output=output, talk=talk, offline=offline)


def chat_verb(
    run: RunArg = "latest", base: Base = False, offline: Offline = False, debug: Debug = False
) -> Call:
    """Talk to a run: answers stream; /both shows base and tuned side by side, /help lists more."""
    from retone.workflows.chat import chat

    return partial(chat, run, base=base, offline=offline)


def serve_verb(
    run: Annotated[
        str | None, typer.Argument(help="A run; the newest finished one when left out.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; others than this need a password.")] =
        "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    api_only: Annotated[bool, typer.Option("--api-only", help="No pages, only the API.")] = False,
    engine: Annotated[
        Literal["retone", "vllm"], typer.Option(help="vllm: its server takes over, for many users.")
    ] = "retone",
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RUN", help="A further adapter of the same base; repeatable."),
    ] = None,
    offline: Offline = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Serve the web app and an OpenAI-compatible API on this machine, until Ctrl-C."""
    from retone.workflows.serve import serve

    return partial(
        serve, run, host=host, port=port, api_only=api_only, engine=engine,
        adapters=adapter or (), offline=offline,
    )  # fmt: skip


def batch_verb(
    run: RunArg,
    source: Annotated[str, typer.Argument(metavar="IN", help="Data of any shape, or a text.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON lines to write.")],
    column: Annotated[str | None, typer.Option(help="The column that holds the prompts.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=5, help="0 takes the likeliest token.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; the run's by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    base: Base = False, offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Answer a file of prompts into JSON lines; stopped, the same command goes on."""
    from retone.workflows.batch import batch

    changed = given(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    return partial(
        batch, run, source, output, column=column, base=base, sampling=changed, offline=offline
    )
