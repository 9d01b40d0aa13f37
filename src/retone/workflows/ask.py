"""`retone ask`: one answer of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from retone import console
from retone.workflows.load import load


@dataclass(frozen=True)
class Asked:
    """One answer."""

    answer: str
    tokens: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object of `retone ask --json`."""
        return {"answer": self.answer, "tokens": self.tokens, "seconds": self.seconds}

    def show(self) -> None:
        """Print the answer alone, so that it can be piped."""
        console.out().print(escape(self.answer), soft_wrap=True)


def ask(run: str, text: str, *, base: bool = False, offline: bool = False) -> Asked:
    """One answer of a run's tuned model (or of its base model).

    `seconds` is the time of the answer without loading the model.
    """
    tuned = load(run, offline=offline)
    started = time.perf_counter()
    answer = tuned.ask(text, tuned=not base)
    return Asked(answer.text, answer.tokens, time.perf_counter() - started)
