"""The command line: a table of verbs, each a workflow function. Torch is imported late.

A verb's function only binds its arguments; `main` calls the workflow, so that the way from the
command to the training step stays short: main -> run -> train -> fit.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence

import typer

from retone import console
from retone.cli.data import import_verb, inspect_verb, new_verb, review_verb, synthesize_verb
from retone.cli.exporting import adopt_verb, blend_verb, eject_verb, export_verb
from retone.cli.keeping import cache_verb, doctor_verb, runs_verb
from retone.cli.options import Call, app
from retone.cli.training import compare_verb, evaluate_verb, run_verb, train_verb
from retone.cli.using import ask_verb, batch_verb, chat_verb, samples_verb, serve_verb
from retone.errors import INTERNAL_EXIT_CODE, CheckFailed, InputError, Interrupted, RetoneError

VERBS: dict[str, Callable[..., Call]] = {  # as --help lists them
    "run": run_verb,
    "new": new_verb,
    "synthesize": synthesize_verb,
    "review": review_verb,
    "import": import_verb,
    "inspect": inspect_verb,
    "train": train_verb,
    "evaluate": evaluate_verb,
    "compare": compare_verb,
    "ask": ask_verb,
    "test": samples_verb,
    "chat": chat_verb,
    "serve": serve_verb,
    "batch": batch_verb,
    "export": export_verb,
    "eject": eject_verb,
    "adopt": adopt_verb,
    "blend": blend_verb,
    "runs": runs_verb,
    "cache": cache_verb,
    "doctor": doctor_verb,
}
for _name, _verb in VERBS.items():
    app.command(_name)(_verb)


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
