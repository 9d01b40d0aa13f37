"""What answers cost, and what a dataset will take."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from retone.errors import InputError, nearest
from retone.planning import is_loopback
from retone.teacher.answers import Manner
from retone.teacher.asking import Price
from retone.teacher.persona import Persona
from retone.teacher.questions import EACH

WORDS_TO_TOKENS = 1.4  # of English prose
NEW_SHARE = 0.6  # of the questions that a teacher proposes
AGAIN_SHARE = 0.3  # of the answers that are written a second time
SECONDS_A_REQUEST = 3.0  # of a server; told as a guess


@dataclass(frozen=True)
class Estimate:
    """What is expected; the meter tells what it was.

    Attributes:
        requests: to the teacher.
        prompt_tokens, completion_tokens: of all of them.
        dollars: US dollars.
        minutes: at `SECONDS_A_REQUEST` each, as many at once as are allowed.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float
    minutes: float

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests, {self.prompt_tokens + self.completion_tokens:,} tokens, "
            f"${self.dollars:.2f}, {max(1, round(self.minutes))} minutes on a server"
        )


def estimate_conversations(
    persona: Persona, manner: Manner, count: int, price: Price, concurrency: int
) -> Estimate:
    """What so many questions with their answers take."""
    told = len(f"{persona.system}{persona.shown}") // 4
    answer = persona.most_words * WORDS_TO_TOKENS * 0.7
    again = AGAIN_SHARE if manner.least else 0.0
    drafts = count * manner.turns * (manner.best_of + again)
    judged = drafts if manner.judged else 0.0
    plain = count * manner.plain
    simulated = count * (manner.turns - 1)
    lists = count / (EACH[0] * NEW_SHARE)
    parts = [  # requests, tokens of the prompt, tokens of the answer
        (lists, 150, 25 * EACH[0]),
        (drafts, told + 60, answer),
        (judged, told + 150 + answer, 20),
        (plain, 60, answer),
        (simulated, 150, 40),
    ]
    return _estimate(parts, price, concurrency)


def estimate_each(
    count: int, prompt: int, completion: int, price: Price, concurrency: int
) -> Estimate:
    """What `count` requests of a kind take."""
    return _estimate([(count, prompt, completion)], price, concurrency)


def _estimate(parts: list[tuple[float, float, float]], price: Price, concurrency: int) -> Estimate:
    requests = round(sum(count for count, _, _ in parts))
    prompt = round(sum(count * tokens for count, tokens, _ in parts))
    completion = round(sum(count * tokens for count, _, tokens in parts))
    minutes = requests * SECONDS_A_REQUEST / concurrency / 60
    return Estimate(requests, prompt, completion, price.of(prompt, completion), minutes)


@cache
def price_table() -> dict[str, dict[str, Any]]:
    """Model -> prompt, completion (US dollars for a million tokens), date, source."""
    text = (files("retone") / "tables" / "prices.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def find_price(url: str, model: str, given: str | None) -> Price:
    """What a model costs: what was given, nothing on this machine, or what the table says.

    Raises InputError where `given` is not two numbers, or nobody knows the price.
    """
    if given is not None:
        return _parsed(given)
    if is_loopback(urlsplit(url).hostname or ""):
        return Price()
    row = price_table().get(model)
    if row is None:
        raise InputError(
            "nobody knows what this teacher costs",
            f"{model}{nearest(model, price_table())} is not in the price table",
            "--price IN,OUT   (US dollars for a million tokens; --price 0,0 where it is free)",
            "unknown-price",
        )
    return Price(row["prompt"], row["completion"])


def _parsed(given: str) -> Price:
    try:
        prompt, completion = (float(part) for part in given.split(","))
        if not (0 <= prompt < math.inf and 0 <= completion < math.inf):
            raise ValueError(given)
    except ValueError:
        raise InputError(
            "--price needs two numbers", repr(given), "--price 0.25,2", "wrong-price"
        ) from None
    return Price(prompt, completion)
