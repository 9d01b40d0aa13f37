"""`retone review`: rows are accepted, edited or rejected, in a local page or the terminal."""

from __future__ import annotations

import secrets
import threading
import webbrowser
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from rich.markup import escape

from retone import console
from retone.errors import MachineError
from retone.evaluation import page
from retone.teacher.reviewing import DECISIONS, FIELD, Review, about, answer_of, asked_of

MOST_BYTES = 1_000_000  # of what a page sends back


@dataclass(frozen=True)
class Reviewed:
    """What was decided so far."""

    review: Review
    kept: int

    def as_json(self) -> dict[str, Any]:
        """The object of `retone review --json`."""
        return {"path": str(self.review.target), "rows": self.kept, **self.review.counts}

    def show(self) -> None:
        """Print the counts and the way on."""
        counts = ", ".join(f"{count} {name}" for name, count in self.review.counts.items())
        to = console.out()
        to.print(escape(f"{self.review.path}: {counts}"))
        told = f"{self.kept} rows are in {self.review.target}"
        to.print(escape(told), style="bold", soft_wrap=True)
        if self.review.counts["open"]:
            to.print(escape(f"go on: retone review {self.review.path}"), soft_wrap=True)


def review(path: Path, *, terminal: bool = False, browser: bool = True, port: int = 0) -> Reviewed:
    """Look at rows until all are decided or somebody stops.

    Args:
        path: JSON lines; each decision is kept in the row's field `review`.
        terminal: ask here instead of in a page.
        browser: open the page in the browser.
        port: of the page; 0 takes a free one. Only this machine reaches it.

    Raises:
        InputError: the file holds no rows that can be reviewed.
    """
    found = Review.open(path)
    if terminal:
        _ask(found)
    else:
        _serve(found, browser=browser, port=port)
    return Reviewed(found, found.finish())


def _ask(found: Review) -> None:
    """Rows one by one in the terminal."""
    at = found.next_open()
    while at is not None:
        row = page.readable(found.rows[at])  # or a terminal would obey what stands in it
        to = console.err
        to.print(f"\n{at + 1} of {len(found.rows)}", style="dim")
        for who, said in asked_of(row):
            to.print(escape(f"{who}: {said}"), soft_wrap=True)
        to.print(escape(answer_of(row)), style="bold", soft_wrap=True)
        to.print("[a]ccept, [e]dit, [r]eject, [q]uit", style="dim", markup=False)
        key = (console.read_turn() or "q").strip().lower()[:1]
        if key == "q":
            return
        if key == "e":
            to.print('the new answer ("""  begins and ends several lines):', style="dim")
            found.decide(at, "accepted", console.read_turn() or None)
        elif key in ("a", "r"):
            found.decide(at, "accepted" if key == "a" else "rejected")
        at = found.next_open(at)


def _serve(found: Review, *, browser: bool, port: int) -> None:
    key = secrets.token_urlsafe(16)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(found, key))
    except OSError as error:
        raise MachineError(
            "the address cannot be used", f"127.0.0.1 port {port}: {error.strerror}",
            "retone review --port 0   (takes a free one)", "port-taken",
        ) from error  # fmt: skip
    address = f"http://127.0.0.1:{server.server_port}/{key}/"
    console.err.print(f"review: {address}", soft_wrap=True)
    console.err.print("keys: a accept, e edit, r reject, j and k move; Ctrl-C stops", style="dim")
    if browser:  # in a thread: a browser of the terminal waits for the page
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def _handler(found: Review, key: str) -> type[BaseHTTPRequestHandler]:
    """Pages and decisions; an address without the key, or of another host, is not answered."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            at = self._asked()
            if at is None:
                self.send_error(404)
            else:
                self._send(_page(found, at))

        def do_POST(self) -> None:
            at = self._asked()
            told = self.headers.get("content-length") or ""
            length = int(told) if told.isdecimal() and len(told) < 12 else 0
            if at is None or not 0 < length <= MOST_BYTES:
                self.send_error(404)
                return
            given = parse_qs(self.rfile.read(length).decode("utf-8", "replace"))
            with lock:
                then = _decided(found, at, given)
            if then is None:
                self._send(page.render("reviewed.html.jinja", review=found))
                threading.Thread(target=self.server.shutdown).start()
                return
            self.send_response(303)
            self.send_header("location", f"/{key}/{then}")
            self.end_headers()

        def _asked(self) -> int | None:
            """The row of an address; None where it is none of ours."""
            hosts = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]  # type: ignore[attr-defined]
            _, own, place = [*self.path.split("/"), "", "", ""][:3]
            known = secrets.compare_digest(own.encode(), key.encode())
            if self.headers.get("host") not in hosts or not known:
                return None
            if not place:
                return found.next_open() or 0
            whole = place.isascii() and place.isdecimal() and len(place) < 12
            return int(place) if whole and int(place) < len(found.rows) else None

        def _send(self, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.send_header("cache-control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Addresses hold the key: they are not printed."""

    return Handler


def _decided(found: Review, at: int, given: dict[str, list[str]]) -> int | None:
    """Keep what a form says; the row that is shown next, None to stop."""
    what = given.get("decision", [""])[0]
    if what == "stop":
        return None
    if what == "open":
        found.take_back(at)
        return at
    if what in DECISIONS:
        answer = given.get("answer", [""])[0].replace("\r\n", "\n")
        shown = page.readable(answer_of(found.rows[at]))  # which a page may not show as it is
        found.decide(at, what, None if answer.strip() in ("", shown.strip()) else answer)
    following = found.next_open(at + 1)
    return following if following is not None else at


def _page(found: Review, at: int) -> str:
    row = page.readable(found.rows[at])
    return page.render(
        "review.html.jinja",
        name=found.path.name,
        at=at,
        total=len(found.rows),
        counts=found.counts,
        decision=row.get(FIELD, ""),
        asked=asked_of(row),
        answer=answer_of(row),
        about=about(row),
    )
