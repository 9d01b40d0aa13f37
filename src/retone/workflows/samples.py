"""`retone test`: the recipe's sample questions, answered by both models and kept."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.conversation import Message
from retone.errors import InputError
from retone.run_dir import write_json
from retone.workflows.adopt import run_or_adapter
from retone.workflows.chat import chat
from retone.workflows.load import load, sample_questions


@dataclass(frozen=True)
class Samples:
    """Sample questions with the answers of both models."""

    path: Path
    answers: list[dict[str, Any]]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object of `retone test --json`."""
        return {"path": str(self.path), "answers": self.answers, "seconds": self.seconds}

    def show(self) -> None:
        """Print each question with both answers."""
        to = console.out()
        for found in self.answers:
            base, tuned = (console.one_line(found[who]["text"]) for who in ("base", "tuned"))
            to.print(escape(found["question"]), style="bold", soft_wrap=True)
            to.print(escape(f"  base   {base}"), style="dim", soft_wrap=True)
            to.print(escape(f"  tuned  {tuned}\n"), style="green", soft_wrap=True)
        to.print(f"kept in {escape(str(self.path))}", soft_wrap=True)


def sample_answers(
    run: str, *, output: Path | None = None, talk: bool = False, offline: bool = False
) -> Samples:
    """Ask a run's sample questions, and go on in the terminal where asked to.

    Args:
        run: a run's directory, name, or latest; or the folder of an adapter.
        output: where the answers are written; in the run's folder by default.
        talk: a conversation follows.
        offline: never ask a network.
    """
    found = run_or_adapter(run, offline=offline)
    tuned = load(found, offline=offline)
    questions = sample_questions(found, tuned.resolved.recipe)
    if not questions:
        raise InputError(
            "the run has no sample questions",
            f"{found.name}: neither data.showcase nor test rows that ask something",
            f'retone ask {found.name} "..."',
            "no-samples",
        )
    started = time.perf_counter()
    prompts = [tuned.messages(Message("user", question)) for question in questions]
    by_base = tuned.engine.base(prompts, tuned.sampling)
    by_tuned = tuned.engine.tuned(prompts, tuned.sampling)
    answers = [
        {"question": question, "base": asdict(one), "tuned": asdict(other)}
        for question, one, other in zip(questions, by_base, by_tuned, strict=True)
    ]
    path = output or found.path / "test_answers.json"
    samples = Samples(path, answers, time.perf_counter() - started)
    write_json(path, {"run": found.name, "sampling": asdict(tuned.sampling), "answers": answers})
    if talk:
        samples.show()
        chat(run, offline=offline)
    return samples
