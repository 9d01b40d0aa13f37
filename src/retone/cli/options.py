"""The application and the options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from retone import __version__
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


def field_flag(name: str) -> Any:
    return typer.Option(f"--{name}", help=_FIELD_HELP[FLAGS[name]])


RecipeArg = Annotated[str, typer.Argument(help="A bundled recipe (yoda) or a TOML file.")]
RunArg = Annotated[
    str, typer.Argument(help="A run's directory or name, latest, or an adapter's folder.")
]
Model = Annotated[str | None, field_flag("model")]
Train = Annotated[str | None, field_flag("train")]
Test = Annotated[str | None, field_flag("test")]
Epochs = Annotated[float | None, field_flag("epochs")]
Seed = Annotated[int | None, field_flag("seed")]
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


def given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
