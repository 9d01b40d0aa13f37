"""Plain text, in pieces that are cut at paragraphs."""

from __future__ import annotations

from collections.abc import Iterator

from retone.conversation import Document
from retone.data.fields import Reading, text
from retone.data.sources import Row

CHUNK_CHARACTERS = 2000  # about 500 tokens of English
# Where a long text is cut, best first.
CUTS = ("\n\n", "\r\n\r\n", "\n", ". ", " ")


def find_text(row: Row) -> Reading | None:
    """Plain text, trained on as it stands, in pieces of about `CHUNK_CHARACTERS`."""
    if "text" not in row:
        return None

    def read(row: Row) -> list[Document]:
        pieces = chunks(text(row, "text"))
        return [Document(piece, extra={"chunk": n}) for n, piece in enumerate(pieces, 1)]

    return Reading("column text", ("text",), read)


def chunks(whole: str, size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Pieces of at most `size` characters, cut at paragraphs where there are any.

    Joined they are the whole text but for the empty lines around each piece.
    """
    start = 0
    while start < len(whole):
        end = _cut(whole, start, size)
        piece = whole[start:end].strip("\r\n")
        if piece.strip():
            yield piece
        start = end


def _cut(whole: str, start: int, size: int) -> int:
    """Where the piece that begins at `start` ends."""
    end = start + size
    if end >= len(whole):
        return len(whole)
    for mark in CUTS:
        at = whole.rfind(mark, start + size // 2, end)
        if at >= 0:
            return at + len(mark)
    return end
