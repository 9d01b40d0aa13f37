"""`retone ask` and `retone chat`: talk to a run."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from retone import console
from retone.conversation import Message
from retone.workflows.load import Tuned, load

HELP = "/reset forgets what was said   /base, /tuned pick who answers   /help   /exit"


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


def chat(run: str, *, base: bool = False, offline: bool = False) -> None:
    """A conversation in the terminal, until /exit, Ctrl-D, or Ctrl-C at the prompt.

    Ctrl-C while the model writes stops that answer alone and keeps what was written.
    """
    model = load(run, offline=offline)
    console.err.print(f"{run} is ready. {HELP}", style="dim")
    tuned = not base
    history: list[Message] = []
    while True:
        text = _read()
        if text is None or text == "/exit":
            return
        if text == "/reset":
            history = []
            console.err.print("forgotten", style="dim")
        elif text in ("/base", "/tuned"):
            tuned = text == "/tuned"
            console.err.print(f"the {text[1:]} model answers now", style="dim")
        elif text == "/help" or text.startswith("/"):
            console.err.print(HELP, style="dim")
        elif text.strip():
            asked = [*history, Message("user", text)]
            answer = _stream(model, asked, tuned)
            history = [*asked, Message("assistant", answer)] if answer else history


def _read() -> str | None:
    try:
        console.err.print("> ", end="", style="bold")
        sys.stderr.flush()
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        console.err.print()
        return None
    return line.rstrip("\n") if line else None


def _stream(model: Tuned, turns: list[Message], tuned: bool) -> str:
    """Print one answer as it is written; the text, also when it was stopped."""
    pieces: list[str] = []
    stream = model.engine.stream(model.messages(*turns), model.sampling, tuned=tuned)
    try:
        for piece in stream:
            pieces.append(piece)
            console.out().print(escape(piece), end="", soft_wrap=True, markup=True)
            console.out().file.flush()
    except KeyboardInterrupt:
        console.err.print(" (stopped)", style="dim", end="")
    finally:
        stream.close()
    console.out().print()
    return "".join(pieces).strip()
