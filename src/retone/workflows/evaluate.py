"""`retone evaluate`: the same held-out rows answered by every candidate, and scored."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from retone import console
from retone.conversation import Conversation
from retone.evaluation.candidates import candidates
from retone.evaluation.metrics import MetricValue, corpus_scores
from retone.inference.engine import Answer
from retone.run_dir import Run, read_json, read_jsonl, write_json, write_jsonl
from retone.workflows.create import require_rows
from retone.workflows.load import load, read_split

Scores = dict[str, dict[str, MetricValue]]


def evaluate(run: Run, *, offline: bool = False) -> Scores:
    """Answer and score the test rows; writes answers.jsonl, then scores.json.

    Raises InputError when there are no test rows.
    """
    rows = read_split(run, "test")
    require_rows(rows, "test")
    started = time.perf_counter()
    tuned = load(run, offline=offline)
    recipe = read_json(run.resolved)["recipe"]
    sampling = tuned.sampling
    references = [row.answer for row in rows]
    prompts = [row.prompt for row in rows]
    shown = [tuned.messages(user) for user in _showcase(recipe["data"]["showcase"])]
    answers: dict[str, list[Answer]] = {}
    with console.ticker() as tick:
        asked = candidates(tuned.engine, recipe["data"]["task"])
        for number, (name, respond) in enumerate(asked.items()):
            tick("evaluation", number, len(asked), f"{name} answers {len(prompts)} rows")
            answers[name] = respond([*prompts, *shown], sampling)
        tick("evaluation", len(asked), len(asked))
    scores = {
        name: corpus_scores([answer.text for answer in given[: len(rows)]], references)
        for name, given in answers.items()
    }
    write_jsonl(run.answers, _answer_rows(rows, recipe["data"]["showcase"], answers))
    write_json(
        run.scores,
        {
            "scores": {name: {m: asdict(v) for m, v in by.items()} for name, by in scores.items()},
            "seconds": time.perf_counter() - started,
            "sampling": asdict(sampling),
        },
    )
    return scores


def read_scores(run: Run) -> Scores:
    """The scores of a finished run."""
    stored = read_json(run.scores)["scores"]
    return {name: {m: MetricValue(**v) for m, v in by.items()} for name, by in stored.items()}


def pairs(run: Run, count: int) -> list[dict[str, Any]]:
    """The first `count` showcase prompts (then test rows) with the answers before and after."""
    rows = read_jsonl(run.answers)
    return sorted(rows, key=lambda row: not row["showcase"])[:count]


def _showcase(prompts: list[str]) -> list[Any]:
    from retone.conversation import Message

    return [Message("user", text) for text in prompts]


def _answer_rows(
    rows: list[Conversation], showcase: list[str], answers: dict[str, list[Answer]]
) -> list[dict[str, Any]]:
    asked = [(row.question, row.answer, False) for row in rows]
    asked += [(text, "", True) for text in showcase]
    return [
        {
            "prompt": prompt,
            "reference": reference,
            "showcase": shown,
            "answers": {name: asdict(given[index]) for name, given in answers.items()},
        }
        for index, (prompt, reference, shown) in enumerate(asked)
    ]
