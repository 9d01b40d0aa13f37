"""Documents as text in chunks, each with the place that it comes from.

Markdown and text are read as they are, HTML by Beautiful Soup, DOCX by mammoth, PDF by pypdf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from retone.errors import InputError, MachineError

CHUNK_CHARACTERS = 2000
LEAST_CHARACTERS = 80  # of a chunk: shorter ones are headings and page numbers
MOST_BYTES = 100_000_000
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
_UNSEEN = ("script", "style", "noscript", "template", "nav", "footer", "svg")
_PARAGRAPHS = ("p", "div", "section", "article", "table")
_SAID = ("NavigableString", "CData")  # not comments, not the declaration of the type
_BLOCKS = (
    "p",
    "div",
    "li",
    "tr",
    "br",
    "pre",
    "blockquote",
    "section",
    "article",
    "table",
    "dt",
    "dd",
    "td",
    "th",
)


@dataclass(frozen=True)
class Chunk:
    """A piece of a document.

    Attributes:
        text: what it says.
        source: the file, as it was named.
        place: the heading or the page it stands under; may be empty.
        number: from 1 within the file.
    """

    text: str
    source: str
    place: str
    number: int

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.source}, {self.place or f'part {self.number}'}"


@dataclass
class Reading:
    """What was read.

    Attributes:
        files: documents with text.
        left_out: file -> why it was not read.
    """

    files: list[str]
    left_out: dict[str, str]


def find_documents(folder: Path) -> list[Path]:
    """The documents of a folder and of those in it, or the one that is named, in name order.

    Raises InputError where there are none.
    """
    every = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    found = [path for path in every if path.suffix.lower() in READERS and path.is_file()]
    if not found:
        raise InputError(
            "there are no documents",
            f"{folder}: nothing that ends in {', '.join(sorted(READERS))}",
            "retone synthesize --documents FOLDER",
            "no-documents",
        )
    return found


def read_documents(paths: list[Path], reading: Reading) -> Iterator[Chunk]:
    """The chunks of all documents; one that cannot be read is noted in `reading` and left out."""
    for path in paths:
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES // 1_000_000} MB")
            sections = list(READERS[path.suffix.lower()](path))
        except MachineError:
            raise
        except Exception as error:  # whatever a reader of foreign files may raise
            reading.left_out[str(path)] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        chunks = list(_chunks(sections, str(path)))
        if chunks:
            reading.files.append(str(path))
        else:
            reading.left_out[str(path)] = "no text in it"
        yield from chunks


def _chunks(sections: list[tuple[str, str]], source: str) -> Iterator[Chunk]:
    """Paragraphs of a section together up to `CHUNK_CHARACTERS`, longer ones cut at sentences.

    What is too short for a chunk of its own is put to its neighbour; a section that is too short as
    a whole is left out.
    """
    number = 0
    for place, text in sections:
        held: list[str] = []
        for piece in _pieces(text):
            last = held[-1] if held else ""
            short = min(len(last), len(piece)) < LEAST_CHARACTERS
            if last and (short or len(last) + len(piece) <= CHUNK_CHARACTERS):
                held[-1] = f"{last}\n\n{piece}"
            else:
                held.append(piece)
        for chunk in held:
            if len(chunk) >= LEAST_CHARACTERS:
                number += 1
                yield Chunk(chunk, source, place, number)


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs, none longer than a chunk."""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = paragraph.strip()
        while len(rest) > CHUNK_CHARACTERS:
            ends = [
                found.end() for found in re.finditer(r"[.!?]\s+|\n|\s", rest[:CHUNK_CHARACTERS])
            ]
            sentences = [
                found.end() for found in re.finditer(r"[.!?]\s+|\n", rest[:CHUNK_CHARACTERS])
            ]
            cut = (sentences or ends or [CHUNK_CHARACTERS])[-1]
            yield rest[:cut].strip()
            rest = rest[cut:].strip()
        if rest:
            yield rest


def _read_markdown(path: Path) -> Iterator[tuple[str, str]]:
    """(heading, text under it)."""
    place, lines, fenced = "", list[str](), False
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        fenced ^= line.lstrip().startswith("```")
        heading = None if fenced else _HEADING.match(line)
        if heading:
            yield place, "\n".join(lines)
            place, lines = heading[2], []
        else:
            lines.append(line)
    yield place, "\n".join(lines)


def _read_text(path: Path) -> Iterator[tuple[str, str]]:
    yield "", path.read_text(encoding="utf-8-sig")


def _read_html(path: Path) -> Iterator[tuple[str, str]]:
    yield from _html_sections(path.read_bytes())


def _read_docx(path: Path) -> Iterator[tuple[str, str]]:
    mammoth = _library("mammoth")
    with path.open("rb") as file:
        html = mammoth.convert_to_html(file, ignore_empty_paragraphs=False).value
    yield from _html_sections(html)


def _read_pdf(path: Path) -> Iterator[tuple[str, str]]:
    pypdf = _library("pypdf")
    for number, page in enumerate(pypdf.PdfReader(path).pages, 1):
        # A line's end within a paragraph is the page's, not the text's.
        text = re.sub(r"-\n(?=[a-z])", "", page.extract_text())
        yield f"page {number}", re.sub(r"(?<![.:!?\n])\n(?!\n)", " ", text)


def _html_sections(html: str | bytes) -> Iterator[tuple[str, str]]:
    """(heading, text under it) of a page, without what is not read."""
    soup = _library("bs4").BeautifulSoup(html, "html.parser")
    for unseen in soup(list(_UNSEEN)):
        unseen.decompose()
    for block in soup(list(_BLOCKS)):
        gap = "\n\n" if block.name in _PARAGRAPHS else "\n"
        block.insert_before(gap)
        block.insert_after(gap)
    place, parts = "", list[str]()
    for text in soup.find_all(string=lambda found: type(found).__name__ in _SAID):
        heading = text.find_parent(re.compile("^h[1-6]$"))
        if heading is None:
            parts.append(str(text))
        elif heading.find(string=True) is text:
            yield place, _tidy("".join(parts))
            place, parts = " ".join(heading.get_text().split()), []
    yield place, _tidy("".join(parts))


def _tidy(text: str) -> str:
    """Runs of spaces become one, lines keep their ends."""
    return re.sub(r"[ \t\xa0]*\n[ \t\xa0]*", "\n", re.sub(r"[ \t\xa0]+", " ", text)).strip()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MachineError(
            "a package is needed to read these documents",
            f"not installed: {name}",
            "pip install 'retone[teacher]'",
            "no-reader",
        ) from error


READERS: dict[str, Callable[[Path], Iterator[tuple[str, str]]]] = {
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".txt": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".docx": _read_docx,
    ".pdf": _read_pdf,
}
