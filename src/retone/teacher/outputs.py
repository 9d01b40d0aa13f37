"""The files of a synthesized dataset, and the card that tells what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any, Self, TextIO

from retone.run_dir import whole_file
from retone.teacher.client import Teacher
from retone.teacher.persona import Persona
from retone.teacher.synthesis import Row

COUNTED = ("families", "reasons", "unanswered", "unread")  # tables of the card
BESIDE = ("left out", "rewriting", "preferences")
CARD = "card"


class Outputs:
    """The files of a dataset, which appear when the block ends well, the rows last.

    Beside the rows: those that were left out, with reasons; where plain answers were asked for,
    pairs to rewrite and preferences (chosen: in the voice, rejected: plain); the card.
    """

    def __init__(self, path: Path) -> None:
        self.files: dict[str, str] = {}
        self._path = path
        self._stack = ExitStack()
        self._open: dict[str, TextIO] = {}

    @property
    def beside(self) -> list[Path]:
        """Where the files beside the rows go; nothing may be there yet."""
        return [self._place(what) for what in (*BESIDE, CARD)]

    def __enter__(self) -> Self:
        self._file("")  # entered first, so renamed last: where the rows are, the rest is too
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, row: Row) -> None:
        """Write a row to the files that it belongs to."""
        values = row.values
        if row.faults:
            self._write("left out", {"faults": list(row.faults), **values})
            return
        self._write("", values)
        plain = values.get("plain")
        if plain:
            asked, answer = values["messages"][:2]
            self._write("rewriting", {"prompt": plain, "completion": answer["content"]})
            self._write("preferences", {
                "prompt": [asked],
                "chosen": [answer],
                "rejected": [{"role": "assistant", "content": plain}],
            })  # fmt: skip

    def card(self, text: str) -> None:
        """Write what is to be known of the data."""
        self._file(CARD).write(text)

    def _write(self, what: str, values: Mapping[str, Any]) -> None:
        self._file(what).write(json.dumps(values, ensure_ascii=False) + "\n")

    def _place(self, what: str) -> Path:
        if not what:
            return self._path
        ending = ".md" if what == CARD else ".jsonl"
        return self._path.with_name(f"{self._path.stem}.{what.replace(' ', '_')}{ending}")

    def _file(self, what: str) -> TextIO:
        if what not in self._open:
            path = self._place(what)
            self._open[what] = self._stack.enter_context(whole_file(path))
            if what:
                self.files[what] = str(path)
        return self._open[what]


def card_text(
    name: str, persona: Persona | None, teacher: Teacher, facts: Mapping[str, Any]
) -> str:
    """The data card: who speaks, who wrote it, how, and on what terms.

    Args:
        name: of the dataset.
        persona: who speaks; None for questions about documents.
        teacher: who wrote it.
        facts: rows, ended, how, spent, and the counts of `COUNTED`.
    """
    lines = [f"# {name}", "", f"{facts['rows']} rows: {facts['ended']}.", ""]
    if persona and persona.real_person:
        told = f"**This is the voice of a real person, {persona.name}.** The right to it: "
        lines += [told + persona.rights, ""]
    elif persona:
        lines += [f"{persona.name} is made up; no real person is meant.", ""]
    lines += [
        f"- written by: {teacher.endpoint.model} at {teacher.endpoint.name}, {date.today()}",
        f"- {facts['how']}",
        f"- {facts['spent']}",
        "- Whether a model may be trained on these answers is a matter of the teacher's terms.",
    ]
    for table in COUNTED:
        if facts.get(table):
            lines += ["", f"| {table} | rows |", "|---|---|"]
            lines += [f"| {_cell(key)} | {count} |" for key, count in facts[table].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
