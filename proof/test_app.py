"""The web app in a real browser over the real model: every page, and nothing leaves the machine."""

from __future__ import annotations

import csv
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from record import record
from screenshots import CHROMIUM, FLAGS
from serving import NAME, Server, served, short_run

pytest.importorskip("gradio", reason="this proof needs the extra `app`")
playwright = pytest.importorskip("playwright.sync_api", reason="this proof needs playwright")

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
YODA = ROOT / "src" / "retone" / "datasets" / "yoda" / "train.jsonl"
SAID = "The tea is cold."
STORY = "Tell me everything you know about the sea, at great length."
SLOW = 600_000  # milliseconds: two shared cores
FOUND: dict[str, Any] = {"requests": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path(CHROMIUM).exists():
        pytest.skip("this proof needs Debian's chromium")
    made = tmp_path_factory.mktemp("app")
    short_run(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with served(folder) as running:
        yield running
        assert running.connections() == []


@contextmanager
def browsing(
    server: Server, *, width: int = 1100, height: int = 900, scheme: str = "light", scale: float = 1
) -> Iterator[Any]:
    """A page of the app; no request may have gone anywhere else, no script may have failed."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=scheme,
            device_scale_factor=scale,
        )  # fmt: skip
        page.set_default_timeout(SLOW)
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        try:
            page.goto(server.address, wait_until="domcontentloaded")
            page.wait_for_selector("#chat-text textarea")
            page.wait_for_function(
                f"document.querySelector('#about')?.innerText.includes('{NAME}')"
            )
            yield page
            hosts = {urlparse(url).netloc for url in asked if urlparse(url).scheme != "data"}
            assert hosts == {urlparse(server.address).netloc}
            assert failed == []
            FOUND["requests"] += len(asked)
        finally:
            browser.close()


def answers(page: Any, box: str) -> list[str]:
    return [text.strip() for text in page.locator(f"{box} [data-testid=bot]").all_inner_texts()]


def settled(page: Any, read: Callable[[], str], before: str = "") -> str:
    """What `read` gives once it is there and no longer grows."""
    last, since = "", time.monotonic()
    for _ in range(SLOW // 250):
        now = read()
        if now != last:
            last, since = now, time.monotonic()
        if last and last != before and time.monotonic() - since > 3:
            return last
        page.wait_for_timeout(250)
    raise AssertionError(f"nothing came, or it never ended: {last!r}")


def ask(page: Any, text: str) -> str:
    """The answer in the chat to one more question."""
    count = len(answers(page, "#talk"))
    page.fill("#chat-text textarea", text)
    page.click("#chat-send")
    page.wait_for_function(f"document.querySelectorAll('#talk [data-testid=bot]').length > {count}")
    return settled(page, lambda: answers(page, "#talk")[-1])


def slide(page: Any, name: str, value: float) -> None:
    field = page.locator(f"#{name} input[type=number]").first
    field.wait_for()
    field.fill(str(value))
    page.wait_for_timeout(400)
    field.press("Enter")
    field.blur()
    # Both parts of the slider have it, and the page sends it along with a little delay.
    page.wait_for_function(
        "([id, value]) => [...document.querySelectorAll(`#${id} input`)].every("
        "(input) => Number(input.value) === value)", arg=[name, value],
    )  # fmt: skip
    page.wait_for_timeout(1500)


def picture(page: Any, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=str(IMAGES / f"app-{name}.png"))


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_chat_sliders_and_stop(server: Server) -> None:
    with browsing(server) as page:
        answer = ask(page, SAID)
        assert answer
        page.click("#examples button, #examples .gallery-item, #examples tr td >> nth=0")
        page.wait_for_function("document.querySelectorAll('#talk [data-testid=bot]').length > 1")
        settled(page, lambda: answers(page, "#talk")[-1])
        picture(page, "chat")
        page.click("#chat-clear")
        page.wait_for_function("!document.querySelector('#talk [data-testid=bot]')")
        page.click("#settings button")
        slide(page, "max-new-tokens", 3)
        short = ask(page, SAID)
        assert len(short) < len(answer)
        page.click("#chat-clear")
        slide(page, "max-new-tokens", 48)
        slide(page, "temperature", 1.4)
        drawn = []
        for seed in (1, 1, 2):
            slide(page, "seed", seed)
            drawn.append(ask(page, STORY))
            page.click("#chat-clear")
            page.wait_for_function("!document.querySelector('#talk [data-testid=bot]')")
        assert drawn[0] == drawn[1] != drawn[2]
        slide(page, "max-new-tokens", 1024)
        page.locator("#who label", has_text="base").click()
        page.fill("#system textarea", "Tell a story without an end.")
        page.fill("#chat-text textarea", STORY)
        page.click("#chat-send")
        page.wait_for_function(
            "(document.querySelector('#talk [data-testid=bot]')?.innerText ?? '').length > 40"
        )
        page.click("#chat-stop")
        page.wait_for_timeout(3000)
        stopped = answers(page, "#talk")[-1]
        page.wait_for_timeout(3000)
        assert answers(page, "#talk")[-1] == stopped
        with urllib.request.urlopen(f"{server.address}/metrics") as found:
            lines = found.read().decode().splitlines()
        assert "retone_cancelled_total 1" in lines
        assert "retone_running 0" in lines
        FOUND["chat"] = {"answer": answer, "short": short, "stopped_at_characters": len(stopped)}


def test_side_by_side_and_a_blind_vote(server: Server, folder: Path) -> None:
    with browsing(server) as page:
        open_tab(page, "Side by side")
        page.fill("#compare-text textarea", SAID)
        page.click("#compare-send")
        sides = [settled(page, lambda box=box: "".join(answers(page, box))) for box in
                 ("#left", "#right")]  # fmt: skip
        assert sides[0] != sides[1]
        picture(page, "compare")
        open_tab(page, "Blind vote")
        page.fill("#vote-text textarea", SAID)
        page.click("#vote-send")
        page.wait_for_selector("#vote-a:not([disabled])")
        blind = [page.input_value(f"#side-{side} textarea").strip() for side in "ab"]
        assert sorted(blind) == sorted(sides)
        assert "tuned model" not in page.locator("#outcome").inner_text()
        page.click("#vote-b")
        page.wait_for_function(
            "document.querySelector('#outcome').innerText.includes('was the tuned model')"
        )
        told = page.locator("#outcome").inner_text()
        assert told.startswith("AB"[blind.index(sides[1])])
        assert "1 vote: " in told
        picture(page, "vote")
        FOUND["compare"] = {"base": sides[0], "tuned": sides[1], "vote": told}
    with browsing(server) as page:
        open_tab(page, "Report")
        inside = page.frame_locator("#report iframe")
        inside.locator("h1").wait_for()
        assert inside.locator("text=Blind votes in the web app").count() == 1
        picture(page, "report")


def test_a_dropped_file_becomes_a_model_to_talk_to(folder: Path) -> None:
    """Seen through a reload of the page, and through another server than the one that began it."""
    rows = [json.loads(line) for line in YODA.read_text("utf-8").splitlines()][:160]
    file = folder / "support.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["prompt", "completion"])
        writer.writerows([row["plain"], row["yoda"]] for row in rows)

    def told(page: Any, text: str) -> str:
        page.wait_for_function(
            f"document.querySelector('#train-status').innerText.includes({json.dumps(text)})"
        )
        return str(page.locator("#train-status").inner_text())

    with served(folder) as first, browsing(first) as page:
        open_tab(page, "Train")
        page.set_input_files("#train-file input[type=file]", str(file))
        data = page.frame_locator("#train-data iframe")
        data.locator("h1").wait_for()
        assert "160" in data.locator("body").inner_text()
        page.fill("#train-name textarea, #train-name input", "dropped")
        page.fill("#train-epochs input", "1")
        page.click("#train-start")
        told(page, "step ")
        page.reload()
        open_tab(page, "Train")
        told(page, "step ")
        assert page.locator("#train-start").is_disabled()
        page.wait_for_selector("#train-curve canvas, #train-curve svg")
        picture(page, "train")
    with served(folder) as second, browsing(second) as page:
        open_tab(page, "Train")
        FOUND["job"] = told(page, "is finished")
        assert "Answers on the way" in page.locator("#train-samples").inner_text()
        page.click("#train-talk")
        page.wait_for_function("document.querySelector('#about').innerText.includes('dropped')")
        assert ask(page, SAID)
        assert second.connections() == []


def test_a_phone(server: Server) -> None:
    with browsing(server, width=390, height=844, scale=2) as page:
        ask(page, SAID)
        for name in ("Chat", "Side by side", "Blind vote"):
            tab = page.get_by_role("tab", name=name)
            if tab.count() and tab.first.is_visible():
                tab.first.click()
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{name}: {wide} px"
        page.get_by_role("tab", name="Chat").first.click()
        picture(page, "phone")


def test_keys_alone(server: Server) -> None:
    with browsing(server) as page:
        page.wait_for_function(
            "document.activeElement?.closest('#chat-text') !== null || "
            "document.querySelector('#chat-text textarea') !== null"
        )
        for _ in range(40):
            if page.evaluate("!!document.activeElement.closest('#chat-text')"):
                break
            page.keyboard.press("Tab")
        assert page.evaluate("!!document.activeElement.closest('#chat-text')")
        page.keyboard.type(SAID)
        page.keyboard.press("Enter")
        page.wait_for_selector("#talk [data-testid=bot]")
        assert settled(page, lambda: answers(page, "#talk")[-1])
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            found = page.evaluate("document.activeElement.closest('[id]')?.id ?? ''")
            reached.add(found)
            assert page.evaluate(
                "getComputedStyle(document.activeElement).outlineStyle !== 'none' || "
                "getComputedStyle(document.activeElement).boxShadow !== 'none' || "
                "document.activeElement === document.body"
            ), found
        assert {"chat-send", "chat-stop", "chat-retry", "chat-clear"} <= reached
        FOUND["keys"] = sorted(reached)


def test_in_the_dark(server: Server) -> None:
    with browsing(server, scheme="dark") as page:
        ask(page, SAID)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades = [int(part) for part in colour.strip("rgba()").split(",")[:3]]
        assert max(shades) < 100, colour
        picture(page, "dark")
    record("app", FOUND)
