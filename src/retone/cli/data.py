"""Where data and recipes come from: new, import, inspect, synthesize, review."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from retone.cli.options import (
    Call,
    Debug,
    Json,
    Model,
    Offline,
    Sets,
    Test,
    Train,
    field_flag,
    given,
)


def new_verb(
    path: Annotated[Path, typer.Argument(help="The recipe to write, ending in .toml.")],
    source: Annotated[
        str, typer.Option("--from", help="A bundled recipe, or persona:NAME.")
    ] = "yoda",
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Write a commented starter recipe."""
    from retone.workflows.runs import new

    return partial(new, path, source=source)


def import_verb(
    file: Annotated[Path, typer.Argument(help="Training YAML of Axolotl or LlamaFactory.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe to write, ending in .toml.")
    ] = None,
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Turn another tool's training YAML into a recipe, and list what has no counterpart."""
    from retone.workflows.import_recipe import import_recipe

    return partial(import_recipe, file, output=output)


def inspect_verb(
    what: Annotated[list[str], typer.Argument(metavar="RECIPE|DATA...", help="What to look at.")],
    tokens: Annotated[int, typer.Option(min=0, help="Rows whose trained tokens to show.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write all of it as a page.")] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a copy: mojibake, white space, equal rows mended.")
    ] = None,
    redact: Annotated[
        Path | None, typer.Option(help="Write a copy without secrets and personal data.")
    ] = None,
    against: Annotated[list[str] | None, field_flag("against")] = None,
    model: Model = None, train: Train = None, test: Test = None, sets: Sets = None,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Check data before training: row shapes, tokens trained, findings. Exit 1 for an error."""
    from retone.workflows.inspect import clean_copy, inspect

    flags = given(model=model, train=train, test=test, against=against)
    if fix and redact:
        raise typer.BadParameter("one copy at a time: --fix first, then --redact on the copy")
    if (fix or redact) and (html or tokens or against):
        raise typer.BadParameter("--html, --tokens, --against: inspect the copy when it is made")
    if fix:
        return partial(clean_copy, what, fix, "fix", flags=flags, sets=sets or ())
    if redact:
        return partial(clean_copy, what, redact, "redact", flags=flags, sets=sets or ())
    return partial(
        inspect, what, tokens=tokens, html=html, flags=flags, sets=sets or (), offline=offline
    )


def synthesize_verb(
    persona: Annotated[
        str | None, typer.Argument(help="A bundled persona (lighthouse) or a TOML file.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON lines to write.")] =
        Path("data.jsonl"),
    count: Annotated[int, typer.Option(min=1, help="Most questions.")] = 300,
    evolve: Annotated[str | None, typer.Option(help="Grow questions out of this file's.")] = None,
    rewrite: Annotated[str | None, typer.Option(help="Put this file's texts in the voice.")] = None,
    author: Annotated[
        str | None, typer.Option(help="Pair this author's texts with what they say plainly.")
    ] = None,
    documents: Annotated[
        str | None, typer.Option(help="Ask about these documents, with the words that answer.")
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="local, a server's name (tables/endpoints.toml), or a URL.")
    ] = "local",
    teacher: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="MODEL@ENDPOINT", help="Another model that judges.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Most US dollars; needed where there is a price.")
    ] = None,
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="US dollars for a million tokens.")
    ] = None,
    best_of: Annotated[int, typer.Option(min=1, max=8, help="Drafts of each answer.")] = 2,
    least: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rubric's points an answer needs.")
    ] = 0.6,
    plain: Annotated[bool, typer.Option(help="Also ask for the answer without the voice.")] = True,
    turns: Annotated[int, typer.Option(min=1, max=8, help="Questions of a conversation.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests at once.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="Longest wait for one answer.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the grid of questions.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would take.")] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Have a teacher model write a persona's dataset; stopped, the same command goes on."""
    from retone.teacher.answers import Manner
    from retone.workflows.synthesize import Order, Source, synthesize

    modes = given(evolve=evolve, rewrite=rewrite, author=author, documents=documents)
    if len(modes) > 1:
        raise typer.BadParameter(f"one at a time: --{', --'.join(modes)}")
    mode: Any = next(iter(modes), "questions")
    manner = Manner(best_of, least, plain, turns)
    order = Order(persona, output, count, mode, modes.get(mode), manner, seed)
    source = Source(endpoint, teacher, judge, budget, price, concurrency, seconds, offline)
    return partial(synthesize, order, source, plan=plan)


def review_verb(
    data: Annotated[Path, typer.Argument(help="JSON lines, as retone synthesize writes them.")],
    terminal: Annotated[bool, typer.Option("--terminal", help="Ask here, not in a page.")] = False,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Accept, edit or reject rows by keyboard; every decision is kept in the file."""
    from retone.workflows.review import review

    return partial(review, data, terminal=terminal, browser=browser, port=port)
