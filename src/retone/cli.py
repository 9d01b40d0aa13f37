"""The command line: one table of verbs, each a workflow function. Torch is imported late.

A verb's function only binds its arguments; `main` calls the workflow, so that the way from the
command to the training step stays short: main -> run -> train -> fit.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retone import __version__, console
from retone.errors import INTERNAL_EXIT_CODE, CheckFailed, InputError, Interrupted, RetoneError
from retone.recipe_file import FLAGS, describe_fields

Call = Callable[[], Any]
_FIELD_HELP = {field: sentence for field, _, _, sentence in describe_fields()}

app = typer.Typer(
    help="Teach a small language model your tone, and prove that it took.\n\n"
    "Start with:  retone run yoda   then:  retone chat latest",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _flag(name: str) -> Any:
    return typer.Option(f"--{name}", help=_FIELD_HELP[FLAGS[name]])


RecipeArg = Annotated[str, typer.Argument(help="A bundled recipe (yoda) or a TOML file.")]
RunArg = Annotated[str, typer.Argument(help="A run's directory or name, or latest.")]
Model = Annotated[str | None, _flag("model")]
Train = Annotated[str | None, _flag("train")]
Test = Annotated[str | None, _flag("test")]
Epochs = Annotated[float | None, _flag("epochs")]
Seed = Annotated[int | None, _flag("seed")]
Name = Annotated[str | None, typer.Option(help="Name of a new run; the recipe's by default.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Set any field; may be repeated."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start a new run although there is one.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask a network.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout (docs/json.md).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Base = Annotated[bool, typer.Option("--base", help="Let the untuned model answer.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> Any:
    """Options of every verb."""
    return partial(print, f"retone {__version__}") if version else None


def _flags(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


@app.command("run")
def run_verb(
    recipe: RecipeArg, model: Model = None, train: Train = None, test: Test = None,
    epochs: Epochs = None, seed: Seed = None, name: Name = None, sets: Sets = None,
    fresh: Fresh = False, offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Prepare, train, evaluate and report; the same recipe again shows or resumes the run."""
    from retone.workflows.run import run

    flags = _flags(model=model, train=train, test=test, epochs=epochs, seed=seed)
    return partial(
        run, recipe, flags=flags, sets=sets or (), name=name, fresh=fresh, offline=offline
    )


@app.command("new")
def new_verb(
    path: Annotated[Path, typer.Argument(help="The recipe to write, ending in .toml.")],
    source: Annotated[str, typer.Option("--from", help="The recipe to start from.")] = "yoda",
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Write a commented starter recipe."""
    from retone.workflows.runs import new

    return partial(new, path, source=source)


@app.command("import")
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


@app.command("inspect")
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
    against: Annotated[list[str] | None, _flag("against")] = None,
    model: Model = None, train: Train = None, test: Test = None, sets: Sets = None,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Check data before training: row shapes, tokens trained, findings. Exit 1 for an error."""
    from retone.workflows.inspect import clean_copy, inspect

    flags = _flags(model=model, train=train, test=test, against=against)
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


@app.command("train")
def train_verb(
    recipe: RecipeArg, model: Model = None, train: Train = None, test: Test = None,
    epochs: Epochs = None, seed: Seed = None, name: Name = None, sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run.")] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Only train: a new run, or with --resume the newest one of the same recipe and data."""
    from retone.workflows.train import train_recipe

    flags = _flags(model=model, train=train, test=test, epochs=epochs, seed=seed)
    return partial(
        train_recipe,
        recipe,
        flags=flags,
        sets=sets or (),
        name=name,
        resume=resume,
        offline=offline,
    )


@app.command("evaluate")
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


@app.command("compare")
def compare_verb(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Finished runs.")],
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Show which settings differ between runs, and whether their answers do."""
    from retone.workflows.compare import compare

    return partial(compare, runs)


@app.command("ask")
def ask_verb(
    run: RunArg, text: Annotated[str, typer.Argument(help="What to ask.")],
    base: Base = False, offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Print one answer."""
    from retone.workflows.ask import ask

    return partial(ask, run, text, base=base, offline=offline)


@app.command("test")
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


@app.command("chat")
def chat_verb(
    run: RunArg = "latest", base: Base = False, offline: Offline = False, debug: Debug = False
) -> Call:
    """Talk to a run: answers stream; /both shows base and tuned side by side, /help lists more."""
    from retone.workflows.chat import chat

    return partial(chat, run, base=base, offline=offline)


@app.command("serve")
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
    offline: Offline = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Serve the web app and an OpenAI-compatible API on this machine, until Ctrl-C."""
    from retone.workflows.serve import serve

    return partial(
        serve, run, host=host, port=port, api_only=api_only, engine=engine, offline=offline
    )


@app.command("batch")
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

    given = _flags(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    return partial(
        batch, run, source, output, column=column, base=base, sampling=given, offline=offline
    )


@app.command("runs")
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


@app.command("cache")
def cache_verb(
    delete: Annotated[list[str] | None, typer.Option(help="Delete this; repeatable.")] = None,
    json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """List the models, answers and prepared data that are kept, with their sizes."""
    from retone.workflows.cache import cache

    return partial(cache, delete=delete or ())


@app.command("doctor")
def doctor_verb(
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the default model now.")] = False,
    offline: Offline = False, json: Json = False, debug: Debug = False,
) -> Call:  # fmt: skip
    """Show what this machine has, what is missing, and the command that mends it."""
    from retone.workflows.doctor import doctor

    return partial(doctor, fetch=fetch, offline=offline)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code (see `errors`)."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    as_json = "--json" in given
    console.use_json(as_json)
    try:
        call = app(given, standalone_mode=False, prog_name="retone")
        if not callable(call):
            return 0
        result = call()
        if as_json:
            print(json.dumps(result.as_json(), ensure_ascii=False, allow_nan=False))
        elif result is not None:
            result.show()
        return 0 if getattr(result, "ok", True) else CheckFailed.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (RetoneError, typer.TyperException, KeyboardInterrupt) as error:
        return _report(error, as_json, "--debug" in given)
    except Exception as error:
        return _report(error, as_json, debug=True)


def _report(error: BaseException, as_json: bool, debug: bool) -> int:
    """Print three lines (or the JSON object) and give the exit code."""
    if isinstance(error, typer.TyperException):
        command = getattr(getattr(error, "ctx", None), "command_path", "retone")
        found = error.format_message()
        known: RetoneError = InputError(
            "the command line is wrong", found, f"{command} --help", "usage"
        )
    elif isinstance(error, RetoneError):
        known = error
    elif isinstance(error, KeyboardInterrupt):
        known = Interrupted("stopped", "Ctrl-C", "the same command again goes on", "interrupted")
    else:
        known = RetoneError(
            "retone itself failed", f"{type(error).__name__}: {error}",
            "please report it with the traceback above", "internal",
        )  # fmt: skip
        known.exit_code = INTERNAL_EXIT_CODE
    if debug:
        traceback.print_exception(error)
    if as_json:
        print(json.dumps(known.as_json(), ensure_ascii=False))
    for label, text in (("error", known.problem), ("found", known.found), ("to do", known.remedy)):
        console.err.print(f"{label}: {text}", markup=False, soft_wrap=True)
    return known.exit_code
