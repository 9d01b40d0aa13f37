"""How much is asked at once, and how much may be spent."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count

from retone.teacher.asking import Reply

FIRST_BACK_OFF = 0.5  # seconds; doubled at each attempt, as the official clients do
LONGEST_BACK_OFF = 30.0
FIRST_AT_ONCE = 32
PLACE: ContextVar[int] = ContextVar("PLACE", default=0)  # of the item that is worked on


class Gate:
    """Lets as many requests through at once as the server stands.

    Grows by one with every answer until the server is first too busy, halves then, and grows by one
    a round from there on (slow start and congestion avoidance; Jacobson 1988, SIGCOMM). Those that
    wait go through in the order of `PLACE`, so that what was begun first is finished first.

    Args:
        most: never more than this at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(most, FIRST_AT_ONCE))
        self.active = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap
        self._asked = count()
        self._starting = True
        self._slowed = 0.0  # when the server was last too busy
        self._closed_until = 0.0

    @asynccontextmanager
    async def pass_through(self) -> AsyncIterator[None]:
        """One request; it waits its turn."""
        while self.active >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (PLACE.get(), next(self._asked), turn))
            await turn
        self.active += 1
        try:
            while (left := self._closed_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            yield
        finally:
            self.active -= 1
            self._wake()

    def answered(self) -> None:
        """A request went well."""
        self.limit = min(self.most, self.limit + (1 if self._starting else 1 / self.limit))
        self._wake()

    def too_busy(self, began: float, after: float | None) -> None:
        """The server refused a request that began at `began` (time.monotonic)."""
        if after:
            self._closed_until = max(self._closed_until, time.monotonic() + after)
        if began > self._slowed:  # those that were under way together count once
            self.limit = max(1.0, self.limit / 2)
            self._slowed = time.monotonic()
            self._starting = False

    def _wake(self) -> None:
        free = int(self.limit) - self.active
        while free > 0 and self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                free -= 1


def back_off(attempt: int, after: float | None) -> float:
    """Seconds before attempt number `attempt` (1 is the second): what the server asked, or longer
    each time, with jitter so that many do not come back together."""
    wait = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** (attempt - 1))
    return max(after or 0.0, wait) * random.uniform(1.0, 1.25)


class OverBudget(Exception):
    """The next request might go beyond the budget."""


@dataclass
class Meter:
    """What was asked and what it cost.

    Attributes:
        budget: US dollars that a dataset may cost, what earlier sittings spent on it included.
        spent: US dollars, of answers and of requests that may have been charged without one.
        reserved: the most that the requests under way may cost.
        answered, cached, repeated, failed: requests.
    """

    budget: float | None = None
    spent: float = 0.0
    reserved: float = 0.0
    answered: int = 0
    cached: int = 0
    repeated: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def reserve(self, cost: float) -> bool:
        """Set the most that a request may cost aside, if there is room for it.

        False where there is none before others under way have cost less than that. Raises
        OverBudget where there will be none.
        """
        if self.budget is not None and self.spent + self.reserved + cost > self.budget:
            if not self.reserved or self.spent + cost > self.budget:
                raise OverBudget
            return False
        self.reserved += cost
        return True

    def release(self, reserved: float) -> None:
        """A request is over."""
        self.reserved -= reserved

    def charge(self, reply: Reply) -> None:
        """Count an answer; one that is known already costs nothing."""
        self.spent += 0.0 if reply.cached else reply.cost
        self.answered += 1
        self.cached += reply.cached
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def __str__(self) -> str:
        parts = [f"{self.answered} answers"]
        parts += [f"{n} {what}" for n, what in ((self.cached, "known"), (self.repeated, "repeated"),
                                                (self.failed, "failed")) if n]  # fmt: skip
        cost = f"${self.spent:.2f}" + (f" of ${self.budget:.2f}" if self.budget is not None else "")
        return ", ".join([*parts, cost])
