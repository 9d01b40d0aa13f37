"""What people see: progress on stderr, results on stdout. Loads without torch.

With `--json` the one object on stdout is the result, and everything for people goes to stderr.
Rich honours NO_COLOR and pipes; where stderr is no terminal, progress comes as plain lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

FENCE = '"""'  # begins and ends a text of several lines
PLAIN_EVERY = 10.0  # seconds between two progress lines where there is no terminal

err = Console(stderr=True, highlight=False)
_out = Console(highlight=False)
_json_mode = False


def use_json(on: bool) -> None:
    """Send what people read to stderr, because stdout belongs to the JSON object."""
    global _json_mode
    _json_mode = on


def out() -> Console:
    """The console that results go to."""
    return err if _json_mode else _out


def note(text: str) -> None:
    """One line about what is going on."""
    err.print(escape(text), style="dim")


class Ticker:
    """A live line for anything counted: `tick(what, done, total)`; plain lines without a terminal.

    It has the shape of `models.locate.Progress`.
    """

    def __init__(self, progress: Progress, live: bool) -> None:
        self._progress = progress
        self._live = live
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Show that `done` of `total` is done; `detail` stands at the end of the line."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(escape(what), total=total, detail="")
        self._progress.update(self._tasks[what], completed=done, total=total, detail=escape(detail))
        now = time.monotonic()
        if not self._live and (now - self._told > PLAIN_EVERY or done >= total):
            self._told = now
            left = self._progress.tasks[self._tasks[what]].time_remaining
            eta = f", {left:.0f} s left" if left else ""
            err.print(escape(f"{what}: {100 * done / max(1, total):.0f} %{eta} {detail}").rstrip())


@contextmanager
def ticker() -> Iterator[Ticker]:
    """Progress with a bar, the time left and a detail, gone when the block ends."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with progress:
        yield Ticker(progress, err.is_terminal)


def training_detail(line: dict[str, Any], last_eval: float | None) -> str:
    """The end of the training line: losses, rates, memory."""
    parts = [f"loss {line['loss']:.3f}"]
    if last_eval is not None:
        parts.append(f"eval {last_eval:.3f}")
    parts.append(f"{line['rows_per_s']:.1f} rows/s")
    parts.append(f"{line['tokens_per_s']:.0f} tokens/s")
    parts.append(f"{line['memory_bytes'] / 1e9:.1f} GB")
    return "  ".join(parts)


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: the first column on the left, numbers on the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def one_line(text: str, most: int | None = None) -> str:
    """A text on one line, cut behind `most` characters."""
    flat = " ".join(text.split())
    return flat if most is None or len(flat) <= most else flat[: most - 1] + "…"


def trained_text(pieces: list[tuple[str, bool]]) -> Text:
    """Row text with the trained parts in bold green between angle marks."""
    text = Text()
    for piece, trained in pieces:
        if trained:
            text.append("«", style="dim")
            text.append(piece, style="bold green")
            text.append("»", style="dim")
        else:
            text.append(piece, style="dim")
    return text


def read_turn() -> str | None:
    """What is typed: a line, several that end in a backslash, or a block between triple quotes."""
    line = _read_line("> ")
    if line is None or not (line.endswith("\\") or line.startswith(FENCE)):
        return line
    fenced = line.startswith(FENCE)
    lines = [line.removeprefix(FENCE)] if fenced else []
    while fenced or line.endswith("\\"):
        if not fenced:
            lines.append(line.removesuffix("\\"))
        more = _read_line(". ")
        if more is None:
            break
        line = more
        if fenced and line.rstrip().endswith(FENCE):
            lines.append(line.rstrip().removesuffix(FENCE))
            break
        if fenced:
            lines.append(line)
    else:
        lines.append(line)
    return "\n".join(lines).strip("\n")


def _read_line(sign: str) -> str | None:
    try:
        if sys.stdin.isatty():
            return input(sign)
        err.print(sign, end="", style="bold")
        line = sys.stdin.readline()
    except (KeyboardInterrupt, EOFError):
        err.print()
        return None
    return line.rstrip("\n") if line else None
