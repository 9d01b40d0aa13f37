"""`retone chat`: a conversation in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.columns import Columns
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from retone import console
from retone.chat_template import RowRejected
from retone.conversation import Message
from retone.run_dir import write_whole
from retone.workflows.load import Tuned, load

LABELS = {True: "tuned", False: "base"}


def chat(run: str, *, base: bool = False, offline: bool = False) -> None:
    """A conversation in the terminal, until /exit, Ctrl-D, or Ctrl-C at the prompt.

    Ctrl-C while the model writes stops that answer alone and keeps what was written.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  the arrow keys work where it is there
    talk = Talk(load(run, offline=offline), base=base)
    console.err.print(f"{run} is ready. /help lists what you can type.", style="dim")
    while talk.going:
        text = console.read_turn()
        if text is None:
            return
        if text.startswith("/"):
            talk.command(text)
        elif text.strip():
            talk.say(text)


class Talk:
    """What was said, who answers and how.

    Args:
        model: who is talked to.
        base: let the untuned model answer at first.
    """

    def __init__(self, model: Tuned, *, base: bool = False) -> None:
        self.model = model
        self.going = True
        self.who: tuple[bool, ...] = (not base,)
        self.system = model.system or ""
        self.sampling = model.sampling
        self.history: list[Message] = []

    def say(self, text: str, before: int | None = None) -> None:
        """Ask, print the answer, and remember both; of two answers the tuned model's.

        Args:
            text: what is said.
            before: turns that it is said behind, which only an answer makes it replace the rest;
                None for all.
        """
        asked = [*self.history[:before], Message("user", text)]
        system = [Message("system", self.system)] if self.system else []
        try:
            said = self._stream([*system, *asked])
        except RowRejected as rejected:
            _tell(f"the model's chat template refuses this: {rejected.detail or rejected.reason}")
            return
        answer = said[self.who.index(True)] if True in self.who else said[0]
        if answer:
            self.history = [*asked, Message("assistant", answer)]

    def command(self, text: str) -> None:
        """Do what a line that begins with a slash says."""
        name, _, rest = text.partition(" ")
        found = COMMANDS.get(name)
        if found is None:
            _tell(f"there is no {name}; /help lists what there is")
        else:
            found[1](self, rest.strip())

    def _stream(self, messages: list[Message]) -> list[str]:
        """Print answers as they are written; the texts, also when they were stopped."""
        said = [""] * len(self.who)
        stream = self.model.engine.stream(messages, self.sampling, tuned=self.who)
        try:
            if len(self.who) == 1:
                for _, piece in stream:
                    said[0] += piece
                    console.out().print(escape(piece), end="", soft_wrap=True)
                    console.out().file.flush()
            else:
                with Live(console=console.out(), auto_refresh=False) as live:
                    for at, piece in stream:
                        said[at] += piece
                        live.update(self._beside(said), refresh=console.out().is_terminal)
        except KeyboardInterrupt:
            console.err.print(" (stopped)", style="dim", end="")
        finally:
            stream.close()
        console.out().print()
        return [text.strip() for text in said]

    def _beside(self, said: list[str]) -> Columns:
        width = max(24, console.out().width // len(said) - 1)
        panels = []
        for tuned, text in zip(self.who, said, strict=True):
            style = "green" if tuned else "dim"
            panels.append(Panel(Text(text), title=LABELS[tuned], border_style=style, width=width))
        return Columns(panels, padding=(0, 1))

    def pick(self, *who: bool) -> None:
        """Let one model answer, or both side by side."""
        self.who = who
        _tell(f"{' and '.join(LABELS[one] for one in who)} answer{'s' * (len(who) == 1)} now")

    def set_system(self, text: str) -> None:
        """Change the system prompt, or show it."""
        if text:
            self.system = "" if text == "none" else text
        _tell(f"system prompt: {self.system or 'none'}   (/system none takes it away)")

    def set_temperature(self, text: str) -> None:
        """Change how freely tokens are picked, or show it."""
        try:
            value = float(text or self.sampling.temperature)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 5:
            _tell(f"a temperature is a number from 0 to 5, not {text!r}")
            return
        self.sampling = replace(self.sampling, temperature=value)
        _tell(f"temperature {value:g}{' (the likeliest token, always)' if not value else ''}")

    def retry(self, _: str) -> None:
        """Ask the last question again, with other random numbers."""
        asked = [at for at, message in enumerate(self.history) if message.role == "user"]
        if not asked:
            _tell("nothing was asked yet")
            return
        text = self.history[asked[-1]].content
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        if self.sampling.temperature == 0:
            _tell("at temperature 0 the answer stays the same; /temp 0.7 lets it vary")
        self.say(text, before=asked[-1])

    def save(self, text: str) -> None:
        """Write the conversation as a row of messages, which retone reads as data."""
        path = Path(text or "chat.jsonl").expanduser()
        if path.exists():
            _tell(f"{path} is there already; /save ANOTHER.jsonl")
            return
        system = [Message("system", self.system)] if self.system else []
        turns = [message.as_dict() for message in [*system, *self.history]]
        write_whole(path, json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        _tell(f"wrote {path}")

    def reset(self, _: str) -> None:
        """Forget what was said."""
        self.history = []
        _tell("forgotten")

    def leave(self, _: str) -> None:
        """End the conversation."""
        self.going = False


def _tell(text: str) -> None:
    console.err.print(escape(text), style="dim", soft_wrap=True)


def _help(_: Talk, __: str) -> None:
    for name, (what, _function) in COMMANDS.items():
        _tell(f"{name:10} {what}")
    _tell(
        f'{console.FENCE:10} begins and ends a text of several lines; so does "\\" at a line\'s end'
    )


COMMANDS: dict[str, tuple[str, Callable[[Talk, str], None]]] = {
    "/help": ("this list", _help),
    "/reset": ("forget what was said", Talk.reset),
    "/retry": ("ask the last question again", Talk.retry),
    "/both": ("base and tuned side by side", lambda talk, _: talk.pick(False, True)),
    "/tuned": ("let the tuned model answer", lambda talk, _: talk.pick(True)),
    "/base": ("let the untuned model answer", lambda talk, _: talk.pick(False)),
    "/system": ("TEXT: another system prompt; none: take it away", Talk.set_system),
    "/temp": ("NUMBER: 0 takes the likeliest token, 1 follows the model", Talk.set_temperature),
    "/save": ("FILE: write the conversation as a row of data", Talk.save),
    "/exit": ("end; so does Ctrl-D", Talk.leave),
}
