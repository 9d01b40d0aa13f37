"""Questions to a teacher model: many at once, each paid for once, never beyond a budget.

    with Teacher(endpoint, store, Meter(budget)) as teacher:
        for found in teacher.each(write_row, questions):
            ...

What is done for one item is an async function that asks as often as it likes; `each` runs many of
them together and gives their results in the order of the items, in flat memory.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Self, TypeVar

from retone.errors import MachineError
from retone.teacher.asking import Again, Ask, Endpoint, NoAnswer, Reply
from retone.teacher.limits import PLACE, Gate, Meter, back_off
from retone.teacher.store import Store

ATTEMPTS = 6
GIVE_UP = 8  # requests that failed before any was answered
LOOK_AHEAD = 4  # items under way for each request that may be: the slow ones hold nobody up
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Found(Generic[Item, Made]):
    """What came of one item: `made`, or the reason why there is none."""

    item: Item
    made: Made | None
    fault: str = ""


class Teacher:
    """Asks an endpoint.

    Args:
        endpoint: where the model answers.
        store: answers that are known already.
        meter: counts, and holds the budget.
        judge: where another model judges what it wrote; the same one when left out.
        order: names what the money is spent on; what it has cost before counts for the budget.
        seconds: a request that takes longer is given up and repeated.
        attempts: so often a request is tried.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        meter: Meter,
        *,
        judge: Endpoint | None = None,
        order: str = "",
        seconds: float = 120,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.endpoint = endpoint
        self.meter = meter
        self.gate = Gate(endpoint.concurrency)
        self._judge = judge
        self._judge_gate = Gate(judge.concurrency) if judge else self.gate
        self._store = store
        self._order = order
        self._leaving = False
        meter.spent += store.spent(order)
        self._seconds = seconds
        self._attempts = attempts
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._counted: set[int] = set()
        self._released = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, daemon=True, name="retone-teacher"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        at_once = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._leaving = True
        self._wait_for(self._leave(at_once=at_once))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._store.close()

    def each(
        self,
        make: Callable[[Item], Awaitable[Made]],
        items: Iterable[Item],
        *,
        ahead: int | None = None,
    ) -> Iterator[Found[Item, Made]]:
        """What `make` makes of each item, in the order of the items.

        Items are taken from the iterable as there is room for them. NoAnswer of one item is told
        with it.

        Args:
            make: what is done for one item.
            items: may itself be the results of another `each`.
            ahead: items begun beyond the one whose result is next; enough to keep the endpoint busy
                by default. What is begun is paid for, so fewer where not all may be wanted.

        Raises:
            OverBudget: nothing more can be asked; what was made before is given first.
            RetoneError: no request can be answered at all.
        """
        window: deque[tuple[Item, Future[Made]]] = deque()
        most = ahead or LOOK_AHEAD * self.gate.most
        try:
            for place, item in enumerate(items):
                window.append((item, self._started(make(item), place)))
                if len(window) >= most:
                    yield self._result(*window.popleft())
            while window:
                yield self._result(*window.popleft())
        finally:
            for _, task in window:
                task.cancel()

    async def ask(self, ask: Ask, *, judging: bool = False) -> Reply:
        """The answer to a request: the one that is kept, or a new one, which is kept then.

        `judging` asks the judge.

        Raises NoAnswer, OverBudget, or RetoneError as the endpoint does.
        """
        endpoint = self._judge if judging and self._judge else self.endpoint
        key = ask.key(endpoint.name, endpoint.model)
        kept = self._store.get(key)
        if kept is not None:
            self._count(key, kept)
            return kept
        if key not in self._under_way:
            task = asyncio.ensure_future(self._new(ask, key, endpoint))
            self._under_way[key] = task
            task.add_done_callback(partial(self._over, key))
        # Who waits may be given up; what was sent is paid for, so its answer is kept all the same.
        return await asyncio.shield(self._under_way[key])

    async def _new(self, ask: Ask, key: str, endpoint: Endpoint) -> Reply:
        try:
            reply = await self._tried(ask, endpoint)
        except NoAnswer as none:
            self.meter.failed += 1
            if self.meter.answered == 0 and self.meter.failed >= GIVE_UP:
                raise MachineError(
                    "the teacher answers nothing",
                    f"{endpoint.model} at {endpoint.name}: {none}",
                    "check that the server runs, its address and the model's name",
                    "no-teacher",
                ) from none
            raise
        cost = endpoint.price.of(reply.prompt_tokens, reply.completion_tokens)
        reply = replace(reply, cost=cost)
        self._store.put(key, reply)
        self._note_spent(cost)
        self._count(key, reply)
        return reply

    def _note_spent(self, dollars: float) -> None:
        """Keep what the order has cost, for the next sitting; nothing where it is free."""
        if dollars:
            self._store.spend(self._order, dollars)

    def _count(self, key: str, reply: Reply) -> None:
        """Charge an answer, once however often it is asked for."""
        short = int(key[:15], 16)  # a number takes a third of the memory
        if short not in self._counted:
            self._counted.add(short)
            self.meter.charge(reply)

    def _over(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # asked for, or asyncio would complain of those nobody waits for

    async def _tried(self, ask: Ask, endpoint: Endpoint) -> Reply:
        """The endpoint's answer, repeated while its failures may pass."""
        gate = self._judge_gate if endpoint is self._judge else self.gate
        most = endpoint.price.of(*ask.likely_tokens)
        for attempt in range(1, self._attempts + 1):
            async with gate.pass_through():
                await self._reserve(most)
                if self._leaving:  # what was not sent yet need not be
                    self.meter.release(most)
                    raise NoAnswer("it was ended")
                began = time.monotonic()
                try:
                    reply = await asyncio.wait_for(endpoint.answer(ask), self._seconds)
                except (Again, TimeoutError) as failure:
                    last = _as_again(failure, self._seconds)
                else:
                    gate.answered()
                    return reply
                finally:
                    self.meter.release(most)
                    self._released.set()
                if last.slower:
                    gate.too_busy(began, last.after)
            if last.charged:
                self.meter.spent += most
                self._note_spent(most)
            if self._leaving:
                raise NoAnswer("it was ended")
            if attempt < self._attempts:
                self.meter.repeated += 1
                await asyncio.sleep(back_off(attempt, last.after))
        raise NoAnswer(f"{last}, {self._attempts} times")

    async def _reserve(self, cost: float) -> None:
        """Set aside the most that a request may cost; waits for others. Raises OverBudget."""
        while not self.meter.reserve(cost):
            self._released.clear()
            await self._released.wait()

    def _started(self, work: Awaitable[Made], place: int) -> Future[Made]:
        async def run() -> Made:
            PLACE.set(place)
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def _result(self, item: Item, task: Future[Made]) -> Found[Item, Made]:
        try:
            return Found(item, task.result())
        except NoAnswer as none:
            return Found(item, None, str(none))

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _leave(self, *, at_once: bool) -> None:
        """Wait for what is under way, or give it up."""
        tasks = list(self._under_way.values())
        for task in tasks if at_once else ():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in filter(None, (self.endpoint, self._judge)):
            await endpoint.close()


def _as_again(failure: Again | TimeoutError, seconds: float) -> Again:
    if isinstance(failure, Again):
        return failure
    return Again(f"no answer within {seconds:.0f} s", charged=True)
