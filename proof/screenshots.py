"""Pictures of a report in a real browser, and proof that no request leaves the page.

    python proof/screenshots.py runs/yoda/report.html docs/images

Needs `pip install playwright` and a Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CROP = 2_200  # CSS pixels of a picture for the docs


@dataclass(frozen=True)
class View:
    """A screen: size in CSS pixels, device pixels for each, light or dark."""

    name: str
    width: int
    height: int
    scale: float
    scheme: str


VIEWS = (
    View("desktop-light", 1280, 900, 1, "light"),
    View("desktop-dark", 1280, 900, 1, "dark"),
    View("phone-light", 390, 844, 2, "light"),
)


@contextmanager
def page_of(html: Path, view: View, *, javascript: bool = True) -> Iterator[Any]:
    """The open report; on leaving, no request but the file itself may have been made.

    Raises AssertionError for a request that left the page, an error on the page, or content wider
    than the screen.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(
            viewport={"width": view.width, "height": view.height},
            device_scale_factor=view.scale,
            color_scheme=view.scheme,
            java_script_enabled=javascript,
        )
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        try:
            address = html.resolve().as_uri()
            page.goto(address, wait_until="domcontentloaded")
            page.wait_for_selector("h1")
            yield page
            assert asked == [address], f"requests left the page: {asked}"
            assert said == [], f"the page complained: {said}"
            if javascript:
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= view.width, f"{view.name}: {wide} px wide on {view.width} px"
        finally:
            browser.close()


def screenshots(html: Path, folder: Path, *, crop: int | None = CROP) -> list[Path]:
    """PNG files of the report on a desk (light, dark) and on a phone; the first `crop` px of it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for view in VIEWS:
        path = folder / f"{html.stem}-{view.name}.png"
        with page_of(html, view) as page:
            height = page.evaluate("document.documentElement.scrollHeight")
            shown = min(height, crop) if crop else height
            clip = {"x": 0, "y": 0, "width": view.width, "height": shown}
            page.screenshot(path=str(path), full_page=True, clip=clip)
        made.append(path)
    return made


def printed(html: Path, folder: Path) -> Path:
    """The report as an A4 PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{html.stem}.pdf"
    with page_of(html, VIEWS[0]) as page:
        page.pdf(path=str(path), format="A4", prefer_css_page_size=True)
    return path


if __name__ == "__main__":
    for picture in screenshots(Path(sys.argv[1]), Path(sys.argv[2])):
        print(picture)
