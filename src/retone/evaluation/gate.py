"""The gate of an export: the run's own answers against those of the file, run by its own engine.

What fails blocks the export. The limits stand in tables/gate.toml, by how weights are stored.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from jinja2 import TemplateError

from retone.errors import MachineError
from retone.evaluation.metrics import sentence_scores
from retone.inference.llama_cpp import TOP
from retone.inference.sampling import Messages
from retone.inference.speaking import Likely, Speaker
from retone.rendering import RowRejected

TOKENS = 48  # of each answer, at most
FULL = 12  # held-out rows that the limit of the score is meant for
ANOTHER_BASE = "another_base"


@dataclass(frozen=True)
class Prompt:
    """One of the fixed prompts.

    Attributes:
        messages: what is asked.
        reference: the held-out answer; empty where there is none.
    """

    messages: Messages
    reference: str = ""


@dataclass(frozen=True)
class Said:
    """What the run itself says to a prompt: ids, whether it ended, and what else was likely."""

    prompt: Prompt
    ids: list[int]
    answer: list[int]
    stopped: bool
    likely: list[Likely]


@dataclass(frozen=True)
class Check:
    """One line of a gate.

    Attributes:
        value: what was measured; None where it was not run.
        limit: what it had to reach; a share or a number as the table names it.
        ok: None where it was not run.
        told: what it means, or why it was not run.
    """

    value: float | None
    limit: float | None
    ok: bool | None
    told: str


@dataclass(frozen=True)
class Gate:
    """All checks of one export."""

    checks: dict[str, Check] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return all(check.ok is not False for check in self.checks.values())

    @property
    def complete(self) -> bool:
        """Every check was run, and none failed."""
        return bool(self.checks) and all(check.ok for check in self.checks.values())

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Check -> value (None where it is no finite number), limit, ok, told."""
        return {
            name: {**vars(check), "value": check.value if _finite(check.value) else None}
            for name, check in self.checks.items()
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Mapping[str, Any]]) -> Gate:
        """What `as_json` gave."""
        return cls({name: Check(**check) for name, check in stored.items()})

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Check, found, asked, the outcome and what it is, for a table."""

        def number(value: float | None) -> str:
            return "" if value is None else f"{value:.3g}"

        outcome = {True: "ok", False: "FAILED", None: "not run"}
        return [
            (name, number(check.value), number(check.limit), outcome[check.ok], check.told)
            for name, check in self.checks.items()
        ]


@cache
def limits_of(kind: str, *, another_base: bool = False) -> dict[str, float]:
    """The limits for a way of storing weights; KeyError for one that the table lacks."""
    table = tomllib.loads((files("retone") / "tables" / "gate.toml").read_text(encoding="utf-8"))
    found = next((row for row in table.values() if kind in row["kinds"]), None)
    if found is None:
        raise KeyError(kind)
    limits = {name: value for name, value in found.items() if isinstance(value, float)}
    more = table[ANOTHER_BASE] if another_base else {}
    return {name: value + more.get(name, 0.0) for name, value in limits.items()}


def say(speaker: Speaker, prompts: Sequence[Prompt], tick: Callable[[int], None]) -> list[Said]:
    """What the run answers, to compare exports with; prompts that its template refuses are left
    out."""
    said = []
    for number, prompt in enumerate(prompts):
        tick(number)
        try:
            ids = speaker.prompt_ids(prompt.messages)
        except RowRejected:
            continue
        answer, stopped = speaker.complete(ids, TOKENS)
        path = answer[:-1] if stopped else answer  # behind its end nothing is asked
        said.append(Said(prompt, ids, answer, stopped, speaker.likely(ids, path)))
    return said


def judge(
    said: Sequence[Said],
    artifact: Speaker,
    decode: Callable[[Sequence[int]], str],
    limits: dict[str, float],
    tick: Callable[[int], None],
) -> Gate:
    """Compare an export with what the run said.

    Args:
        said: by the run.
        artifact: the export behind its own engine.
        decode: ids of an answer -> its text.
        limits: of `limits_of`.
        tick: told the number of the prompt.
    """
    same, agreed, moved, ended, texts = 0, list[bool](), list[float](), list[bool](), list[str]()
    for number, one in enumerate(said):
        tick(number)
        same += _reads_the_same(artifact, one)
        theirs = artifact.likely(one.ids, one.answer[: len(one.likely) - 1])
        for ours, their in zip(one.likely, theirs, strict=True):
            if not their:
                continue
            first = next(iter(ours))
            agreed.append(first == next(iter(their)))
            moved.append(abs(ours[first] - their.get(first, min(their.values()))))
        # Twice the run's own length: a few tokens more are no answer without an end.
        answer, stopped = artifact.complete(one.ids, 2 * TOKENS)
        if one.stopped:
            ended.append(stopped)
        texts.append(decode(answer[:TOKENS]))
    checks = {
        "prompt ids": Check(
            same, len(said), 0 < len(said) == same,
            f"{same} of {len(said)} prompts give the ids that the run was trained with",
        ),
        **_positions(agreed, moved, limits),
        "stop": _stops(ended, limits["stop"]),
        "score": _score(said, texts, decode, limits["score"]),
    }  # fmt: skip
    return Gate(checks)


def not_run(why: str) -> Gate:
    """A gate that could not be held."""
    names = ("prompt ids", "top-1", "drift", "stop", "score")
    return Gate({name: Check(None, None, None, f"not run: {why}") for name in names})


def _reads_the_same(artifact: Speaker, one: Said) -> bool:
    """Same ids, and as many of them when it is really asked: some engines add a second BOS."""
    asked, tokens = one.prompt.messages, len(one.ids)
    try:
        return artifact.prompt_ids(asked) == one.ids and artifact.prompt_tokens(asked) == tokens
    except (TemplateError, MachineError):  # a template that refuses what the run's own renders
        return False


def _positions(
    agreed: Sequence[bool], moved: Sequence[float], limits: Mapping[str, float]
) -> dict[str, Check]:
    """Top-1 and drift, over the positions of which the engine tells what it thinks."""
    if not agreed:
        untold = Check(None, None, None, "not run: the engine tells no probabilities")
        return {"top-1": untold, "drift": untold}
    same = f"share of {len(agreed)} positions with the same likeliest token"
    drift = f"mean change of that token's log-probability (within the top {TOP}), in nats"
    return {
        "top-1": _at_least(fmean(agreed), limits["top_1"], same),
        "drift": _at_most(fmean(moved), limits["drift"], drift),
    }


def _stops(ended: Sequence[bool], limit: float) -> Check:
    if not ended:
        why = f"not run: no answer of the run ends within {TOKENS} tokens"
        return Check(None, limit, None, why)
    told = f"share of {len(ended)} answers that end by themselves, as the run's do"
    return _at_least(fmean(ended), limit, told)


def _score(
    said: Sequence[Said], texts: Sequence[str], decode: Callable[[Sequence[int]], str], limit: float
) -> Check:
    """Points of chrF that answers lose against the held-out ones."""
    rows = [at for at, one in enumerate(said) if one.prompt.reference]
    if not rows:
        return Check(None, limit, None, "not run: the run has no held-out answers")
    references = [said[at].prompt.reference for at in rows]
    ours = sentence_scores([decode(said[at].answer) for at in rows], references)
    theirs = sentence_scores([texts[at] for at in rows], references)
    limit *= max(1.0, FULL / len(rows)) ** 0.5  # few rows: one other word weighs more
    lost = fmean(score or 0.0 for score in ours) - fmean(score or 0.0 for score in theirs)
    return _at_most(lost, limit, f"points of chrF lost on {len(rows)} held-out rows")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _at_least(value: float, limit: float, told: str) -> Check:
    return Check(value, limit, value >= limit, told)


def _at_most(value: float, limit: float, told: str) -> Check:
    return Check(value, limit, value <= limit, told)
