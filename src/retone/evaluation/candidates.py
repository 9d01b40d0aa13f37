"""Who answers the held-out rows: the prompt copied, the base model, the tuned model."""

from __future__ import annotations

from collections.abc import Sequence

from retone.inference.engine import Answer, Engine, Messages, Responder, Sampling


def copy_prompt(prompts: Sequence[Messages], sampling: Sampling) -> list[Answer]:
    """The user's own words given back (a `Responder`): what a rewrite has to beat."""
    answers = []
    for messages in prompts:
        said = [message.content for message in messages if message.role == "user"]
        answers.append(Answer(said[-1] if said else "", 0, True))
    return answers


def candidates(engine: Engine, task: str) -> dict[str, Responder]:
    """Name -> responder of everyone who is asked, in the order of the tables."""
    asked: dict[str, Responder] = {"base": engine.base, "tuned": engine.tuned}
    return {"copy": copy_prompt, **asked} if task == "rewrite" else asked
