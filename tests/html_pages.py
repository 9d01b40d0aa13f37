"""An HTML page as a browser would see it, and text that a page may be harmed by."""

from __future__ import annotations

from html.parser import HTMLParser

NASTY = {
    "script": "<script>alert(1)</script></p></body>",
    "quotes": """" onload="x" ' <b>&amp; &lt;""",
    "rtl": "שלום \u202eevil\u202c مرحبا",
    "long word": "Donaudampfschifffahrt" * 40,
    "emoji": "👩‍👩‍👧‍👦 🛸",
    "template": "{{ 7 * 7 }} {% raw %}",
    "lines": "first\n\n  second\n\n\n```\ncode\n```",
}


class Page(HTMLParser):
    """What a browser would see: elements, text by element, and the outermost drawings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.of: dict[str, list[str]] = {}
        self.drawings: list[set[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "svg" and "svg" not in self._open:
            self.drawings.append(set())
        elif "svg" in self._open:
            self.drawings[-1].add(tag)
        if tag not in ("meta", "input", "br", "wbr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.of.setdefault(self._open[-1], []).append(data)
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())
