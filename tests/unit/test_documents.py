"""Documents as chunks: every format, places, cuts, and files that are not what they are called."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pytest.importorskip("bs4", reason="the extra `teacher` is not installed")
pytest.importorskip("mammoth", reason="the extra `teacher` is not installed")
pytest.importorskip("pypdf", reason="the extra `teacher` is not installed")

from hypothesis import given
from hypothesis import strategies as st

from retone.errors import InputError
from retone.teacher.documents import (
    CHUNK_CHARACTERS,
    LEAST_CHARACTERS,
    Chunk,
    Reading,
    _chunks,
    find_documents,
    read_documents,
)
from retone.teacher.reading import object_in, texts_in

LONG = "The ferry leaves at nine and comes back when the tide allows it. "


def read(folder: Path) -> tuple[list[Chunk], Reading]:
    reading = Reading([], {})
    return list(read_documents(find_documents(folder), reading)), reading


def pdf(path: Path, *pages: str) -> None:
    """A small PDF with a line of Helvetica on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for at, text in enumerate(pages):
        drawn = f"BT /F1 9 Tf 20 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * at} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    body, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{one}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    body += (
        f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
        f"startxref\n{len(body)}\n%%EOF\n"
    ).encode()
    path.write_bytes(body)


def docx(path: Path, *paragraphs: tuple[str, str]) -> None:
    """A small Word file of (style, text)."""
    names = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    target = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    links = "http://schemas.openxmlformats.org/package/2006/relationships"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{types}"><Default Extension="rels" ContentType='
            '"application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{links}"><Relationship Id="r" Type="{target}" '
            'Target="word/document.xml"/></Relationships>',
        )
        file.writestr(
            "word/document.xml", f"<w:document {names}><w:body>{body}</w:body></w:document>"
        )


def test_every_format_gives_its_text_and_places(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        f"# One\n\n{LONG * 2}\n\n```\n# no heading\n```\n\n## Two\n{LONG * 2}"
    )
    (tmp_path / "b.txt").write_text("\ufeff" + LONG * 2, "utf-8")
    (tmp_path / "c.html").write_text(
        f"<nav>Menu</nav><h2>Tides &amp; times</h2><p>{LONG * 2}</p><ul><li>first</li></ul>"
        "<!-- a secret note --><table><tr><td>7</td><td>12</td></tr></table>"
        f"<style>p {{}}</style><script>steal()</script><h2>Fares</h2><div>{LONG * 2}</div>"
    )
    docx(tmp_path / "d.docx", ("Heading1", "Boats"), ("Normal", LONG * 2), ("Normal", LONG * 2))
    pdf(tmp_path / "e.pdf", LONG * 2, LONG * 2)
    (tmp_path / "f.odt").write_text("not read")
    chunks, reading = read(tmp_path)
    assert reading.left_out == {}
    found = {(Path(chunk.source).name, chunk.place) for chunk in chunks}
    assert found == {
        ("a.md", "One"), ("a.md", "Two"), ("b.txt", ""), ("c.html", "Tides & times"),
        ("c.html", "Fares"), ("d.docx", "Boats"), ("e.pdf", "page 1"), ("e.pdf", "page 2"),
    }  # fmt: skip
    assert all(LONG.strip() in " ".join(chunk.text.split()) for chunk in chunks)
    texts = " ".join(chunk.text for chunk in chunks)
    assert "first" in texts
    assert "# no heading" in texts
    for unseen in ("Menu", "steal", "p {}", "secret", "712"):
        assert unseen not in texts


def test_what_cannot_be_read_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text(LONG * 3)
    (tmp_path / "bad.docx").write_bytes(b"PK\x03\x04 but not really")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "empty.md").write_text("# Only a heading\n")
    chunks, reading = read(tmp_path)
    assert len(chunks) == 1
    assert {Path(name).name for name in reading.left_out} == {
        "bad.docx", "bad.pdf", "bad.txt", "empty.md",
    }  # fmt: skip
    with pytest.raises(InputError, match="no documents"):
        find_documents(tmp_path / "nowhere")


@given(st.lists(st.text(max_size=300), max_size=12))
def test_no_text_is_lost_or_made_up(paragraphs: list[str]) -> None:
    text = "\n\n".join(paragraphs)
    chunks = list(_chunks([("", text)], "a"))
    assert all(
        LEAST_CHARACTERS <= len(chunk.text) < CHUNK_CHARACTERS + LEAST_CHARACTERS + 4
        for chunk in chunks
    )
    assert [chunk.number for chunk in chunks] == list(range(1, len(chunks) + 1))
    said = "".join("".join(chunk.text.split()) for chunk in chunks)
    whole = "".join(text.split())
    assert said in whole or len(whole) - len(said) < LEAST_CHARACTERS * (len(paragraphs) + 1)


def test_long_paragraphs_are_cut_at_sentences() -> None:
    chunks = list(_chunks([("", LONG * 100)], "a"))
    assert len(chunks) > 2
    assert all(chunk.text.endswith(".") for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"questions": ["a?", "b?"]}', ["a?", "b?"]),
        ('Sure! ```json\n{"questions": ["a?", "b?",]}\n```', ["a?", "b?"]),
        ('{"questions": ["a?", "b?"', ["a?", "b?"]),
        ('["a?", "b?"]', ["a?", "b?"]),
        ("1. a?\n2) b?", ["a?", "b?"]),
        ('- "a?"\n* b?', ["a?", "b?"]),
        ("I cannot do that.", []),
        ("", []),
        ('{"questions": "a?"}', []),
        ('{"questions": [1, null, {"x": 1}, " "]}', []),
    ],
)
def test_lists_are_read_from_what_teachers_write(text: str, found: list[str]) -> None:
    assert texts_in(text, "questions") == found


@given(st.text(max_size=200))
def test_any_answer_can_be_read(text: str) -> None:
    assert isinstance(object_in("{" + text), dict)
    assert all(isinstance(one, str) and one for one in texts_in(text, "questions"))
