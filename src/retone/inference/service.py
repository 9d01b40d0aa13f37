"""Many askers, one model: a bounded queue before the decoding loop, which runs in a thread.

Requests join the rows that are being written as soon as there is room for their keys and values.
Whoever asks is told of every piece of text through a function, called from that thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from retone.errors import InputError
from retone.inference.decoding import TUNED, Decoder, Row
from retone.inference.engine import Engine, Parse, TextStream
from retone.inference.row_lora import add_adapter, not_loaded, remove_adapter

PROMPT_TOKENS = 4096  # read together when rows join: bounds the memory of that pass


class Busy(Exception):
    """So many are waiting that no more are taken."""


class Unloaded(Exception):
    """Rows name an adapter that is not there any more."""


@dataclass(frozen=True)
class Event:
    """What became of a row in one step.

    Attributes:
        piece: the text that is new; may be empty.
        finished: nothing more comes.
        fault: why it ended, where the model failed.
    """

    piece: str = ""
    finished: bool = False
    fault: str = ""


@dataclass(eq=False)
class Ticket:
    """One row that waits or is written, and who is told of it.

    Attributes:
        row: what is asked.
        parse: from its ids to text.
        tell: called with every event, from the thread of the service.
    """

    row: Row
    parse: Parse
    tell: Callable[[Event], None]
    cancelled: bool = False
    text: TextStream = field(init=False)

    def __post_init__(self) -> None:
        self.text = TextStream(self.parse, self.row.sampling.stop)

    @property
    def length(self) -> int:
        """Tokens that its keys and values may come to."""
        return len(self.row.prompt) + self.row.sampling.max_new_tokens


@dataclass
class Counts:
    """What a service did since it began; the gauges are of now."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    faults: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    running: int = 0
    waiting: int = 0


class Service:
    """Answers many at once.

    Args:
        engine: the model; nobody else may use it meanwhile.
        waiting: rows that may wait; more raise `Busy`.
        cache_bytes: memory for the keys and values of the rows that are written together.
    """

    def __init__(self, engine: Engine, *, waiting: int = 256, cache_bytes: float = 2e9) -> None:
        self.engine = engine
        self.counts = Counts()
        self._most_waiting = waiting
        self._most_tokens = int(cache_bytes / engine.cache_bytes_per_token)
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []
        self._adapters: set[str | None] = {TUNED, None}
        self._numbers = count(1)
        self._changes: list[tuple[Callable[[Decoder], None], Future[None]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, args=[engine.decoder()], daemon=True, name="retone-service"
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closed

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue rows that belong together; Busy where there is no room for all, or Unloaded."""
        with self._changed:
            if any(ticket.row.adapter not in self._adapters for ticket in tickets):
                raise Unloaded
            self.counts.requests += 1
            if len(self._waiting) + len(tickets) > self._most_waiting or self._closed:
                self.counts.refused += 1
                raise Busy
            self._waiting.extend(tickets)
            self._changed.notify()

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more; those that are finished stay as they are."""
        with self._changed:
            for ticket in tickets:
                if not ticket.row.finished and not ticket.cancelled:
                    ticket.cancelled = True
                    self.counts.cancelled += 1
            self._waiting = deque(one for one in self._waiting if not one.cancelled)
            self._changed.notify()

    def load_adapter(self, folder: Path) -> str:
        """Load an adapter for rows to name while others are written; its name, never used before.

        Raises:
            InputError, MachineError: as `add_adapter`; nothing is left of it then.
            Busy: the service is closed.
        """
        name = f"loaded{next(self._numbers)}"

        def load(decoder: Decoder) -> None:
            add_adapter(self.engine.model, name, folder)
            try:
                decoder.read_adapters()
            except Exception as error:
                remove_adapter(self.engine.model, name)
                raise not_loaded(folder, error) from error

        self._between_steps(load)
        with self._changed:
            self._adapters.add(name)
        return name

    def unload_adapter(self, name: str) -> None:
        """Take out an adapter that `load_adapter` named.

        Raises:
            InputError: rows that name it wait or are written (adapter-in-use).
            Busy: the service is closed.
        """
        with self._changed:
            asked = [
                ticket
                for ticket in (*self._waiting, *self._active)
                if ticket.row.adapter == name and not (ticket.row.finished or ticket.cancelled)
            ]
            if asked:
                raise InputError(
                    "the adapter is in use",
                    f"{len(asked)} of its answers are not finished",
                    "ask again when they are",
                    "adapter-in-use",
                )
            self._adapters.discard(name)

        def unload(decoder: Decoder) -> None:
            remove_adapter(self.engine.model, name)
            decoder.read_adapters()

        self._between_steps(unload)

    def close(self) -> None:
        """Stop after the step that is under way; who waits is told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _between_steps(self, change: Callable[[Decoder], None]) -> None:
        """Let the thread that uses the model change it, and wait for that."""
        done: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise Busy
            self._changes.append((change, done))
            self._changed.notify()
        done.result()

    def _run(self, decoder: Decoder) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._changes or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
            self._change(decoder)
            with self._changed:
                joining = self._admitted() if decoder.open else []
                self._active += joining
                self.counts.running, self.counts.waiting = len(self._active), len(self._waiting)
            started = time.perf_counter()
            try:
                if joining:
                    decoder.join([ticket.row for ticket in joining])
                self._tell()
                decoder.step()
            except Exception as error:  # a row must not take the service with it
                self._fail(f"{type(error).__name__}: {error}")
                decoder.clear()
            self.counts.busy_seconds += time.perf_counter() - started
            self.counts.running = len(self._active)
        self._active += self._waiting
        self._fail("the server was stopped")
        for _, done in self._changes:
            done.set_exception(Busy())

    def _change(self, decoder: Decoder) -> None:
        """Load and unload what was asked for; the rows go on."""
        with self._changed:
            changes, self._changes = self._changes, []
        for change, done in changes:
            try:
                change(decoder)
            except Exception as error:  # told to who asked for it
                done.set_exception(error)
            else:
                done.set_result(None)

    def _admitted(self) -> list[Ticket]:
        """The waiting rows that there is room for, in their order."""
        joining: list[Ticket] = []
        while self._waiting:
            first = self._waiting[0]
            rows = [*self._active, *joining, first]
            longest = max(ticket.length for ticket in rows)
            prompts = [len(ticket.row.prompt) for ticket in (*joining, first)]
            if joining and max(prompts) * len(prompts) > PROMPT_TOKENS:
                break
            if len(rows) > self.engine.batch_size:
                break
            if len(rows) > 1 and longest * len(rows) > self._most_tokens:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _tell(self) -> None:
        """Give every asker what is new, and let go of the rows that are done."""
        going = []
        for ticket in self._active:
            if not ticket.row.ids:
                going.append(ticket)
                continue
            if len(ticket.row.ids) == 1:
                self.counts.prompt_tokens += len(ticket.row.prompt)
            self.counts.tokens += 1
            if ticket.cancelled:
                ticket.row.finished = True
                continue
            piece = ticket.text.next(ticket.row)
            if piece or ticket.row.finished:
                ticket.tell(Event(piece, ticket.row.finished))
            if not ticket.row.finished:
                going.append(ticket)
        self._active = going

    def _fail(self, fault: str) -> None:
        for ticket in self._active:
            self.counts.faults += 1
            ticket.row.finished = True
            ticket.tell(Event("", True, fault))
        self._active = []
