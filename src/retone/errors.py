"""The errors that retone raises, and the exit code of each.

    RetoneError
    +-- CheckFailed      1   the answer is no: a check or a gate did not pass
    +-- InputError       2   what the user gave is wrong: a recipe, a flag, a data file
    +-- MachineError     3   the machine lacks something: a model, disk, memory, a package
    +-- Interrupted    130   stopped by the user or by a limit; the run can be resumed

Every error carries three sentences: what is wrong, what was found, what to type. The command line
prints them as three lines and no traceback (`--debug` shows it). Anything else that reaches the
command line is our own fault and exits with 70.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERNAL_EXIT_CODE = 70


class RetoneError(Exception):
    """An error with its remedy; raised through one of the subclasses below.

    Args:
        problem: what is wrong, one sentence without a full stop.
        found: what was found, with the place: file, row, field, value.
        remedy: what to type or change.
        code: a short stable name for scripts (kebab case), printed by `--json`.
    """

    exit_code = INTERNAL_EXIT_CODE

    def __init__(self, problem: str, found: str, remedy: str, code: str) -> None:
        super().__init__(problem, found, remedy, code)
        self.problem = problem
        self.found = found
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.problem}\n  found: {self.found}\n  to do: {self.remedy}"

    def as_json(self) -> dict[str, dict[str, str]]:
        """The `{error: {problem, found, remedy, code}}` object of `--json`."""
        fields = {"problem": self.problem, "found": self.found, "remedy": self.remedy}
        return {"error": {**fields, "code": self.code}}


class CheckFailed(RetoneError):
    """A check, gate or threshold was evaluated and did not pass."""

    exit_code = 1


class InputError(RetoneError):
    """A recipe, flag, file or row is wrong; nothing was changed."""

    exit_code = 2


class MachineError(RetoneError):
    """The machine lacks something: a model, a package, disk or memory."""

    exit_code = 3


class Interrupted(RetoneError):
    """Stopped before the end; what was done is kept and can be resumed."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "x"?)` for the closest known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{matches[0]}"?)' if matches else ""
