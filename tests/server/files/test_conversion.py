"""Text from files: of every type, of the wrong name, and of hostile ones, in their own process."""

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from refine_server.server.files.conversion import docx as word
from refine_server.server.files.conversion.converter import Converter
from refine_server.server.files.conversion.found import (
    ConversionError,
    ConvertedText,
    Limits,
    Page,
)
from refine_server.server.files.conversion.html import read_html
from refine_server.server.files.conversion.kinds import kind_of, text_of
from refine_server.server.files.conversion.pdf import read as read_pdf
from refine_server.server.settings import Settings
from support.documents import docx, pdf

LIMITS = Limits(pages=20, characters=10_000, seconds=30.0, memory_bytes=2**30)
HTML = b"<!doctype html><title>Port</title><p>The harbour code is <b>amber</b>.<p>Rain."


def convert(data: bytes, filename: str = "file", limits: Limits = LIMITS) -> ConvertedText:
    """Read a file in a process of its own."""
    converter = Converter(Settings(model="tiny"))
    converter.limits = limits
    return asyncio.run(converter.convert(data, filename))


def refused(data: bytes, filename: str = "file", limits: Limits = LIMITS) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        convert(data, filename, limits)
    return caught.value


# -- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "filename", "kind"),
    [
        (b"plain", "a.txt", "text"),
        (b"# Title", "a.md", "markdown"),
        (HTML, "a.txt", "html"),
        (b"\xef\xbb\xbf <!-- x --> <HTML>", "page", "html"),
        (b"<p>No head</p>", "a.html", "html"),
        (b"a < b", "a.txt", "text"),
        (pdf(["x"]), "a.docx", "pdf"),
        (b"junk before\n" + pdf(["x"]), "a.pdf", "pdf"),
        (docx(["x"]), "a.pdf", "docx"),
    ],
)
def test_the_content_says_what_a_file_is(data: bytes, filename: str, kind: str) -> None:
    assert kind_of(data, filename) == kind


def test_an_archive_without_a_word_document_is_refused() -> None:
    sheet = docx(["x"]).replace(b"word/document.xml", b"word/workbook.xml")
    with pytest.raises(ConversionError, match="ZIP archive") as caught:
        kind_of(sheet, "a.docx")
    assert caught.value.code == "unsupported_file"


def test_a_long_beginning_is_looked_at_in_no_time() -> None:
    assert kind_of(b"<!---->" * 580 + b"x", "a.txt") == "text"


def test_html_in_another_encoding_says_which() -> None:
    data = '<meta charset="iso-8859-1"><p>grün'.encode("latin-1")
    assert "grün" in text_of(data, "html")
    with pytest.raises(ConversionError, match="not known"):
        text_of(data.replace(b"iso-8859-1", b"iso-9999-9"), "html")


# -- text -----------------------------------------------------------------------------------------


def test_blocks_of_html_are_separated_and_inline_text_is_not() -> None:
    found = read_html(
        "<html><head><title> The\n port </title><style>p {}</style></head><body><h1>Port</h1>"
        "<p>The  harbour\ncode is <b>am</b>ber.</p><script>alert(1)</script><ul><li>one<li>two</ul>"
        "<table><tr><td>a<td>b</tr><tr><td>c<td>d</table>x<br>y<pre>  k\n  l</pre></body></html>"
    )
    assert found.title == "The port"
    assert found.text == (
        "Port\n\nThe harbour code is amber.\n\none\ntwo\n\na\tb\nc\td\n\nx\ny\n\n  k\n  l"
    )


def test_html_of_any_depth_is_read() -> None:
    assert read_html("<div>" * 10_000 + "deep" + "</div>" * 10_000).text == "deep"


def test_pages_of_a_pdf_cover_its_text() -> None:
    found = read_pdf(pdf(["One.", "", "Three (3)."], title="Port"), LIMITS)
    assert found.text == "One.\n\n\n\nThree (3)."
    assert found.title == "Port"
    assert found.pages == (
        Page(start=0, has_text=True),
        Page(start=6, has_text=False),
        Page(start=8, has_text=True),
    )


def test_an_empty_password_is_tried() -> None:
    assert read_pdf(pdf(["One."], password=""), LIMITS).text == "One."


# -- in a process of its own ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "filename", "text"),
    [
        (b"The harbour code\r\nis amber.", "a.txt", "The harbour code\r\nis amber."),
        (HTML, "a.html", "The harbour code is amber.\n\nRain."),
        (docx(["The harbour code", "is amber."]), "a.docx", "The harbour code\n\nis amber."),
        (pdf(["The harbour code", "is amber."]), "a.pdf", "The harbour code\n\nis amber."),
    ],
    ids=["txt", "html", "docx", "pdf"],
)
def test_a_process_reads_files_of_each_type(data: bytes, filename: str, text: str) -> None:
    found = convert(data, filename)
    assert found.text == text
    assert [page.start for page in found.pages] == ([0, 18] if filename == "a.pdf" else [])


BOMB = docx(["x"], extra=[("word/media/a.bin", bytes(word.MAX_UNPACKED_BYTES + 1))])
DEEP = pdf(["x"]).replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]")  # a page tree that has itself


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (pdf(["secret"], password="key"), LIMITS, "encrypted_file"),
        (pdf(["", ""]), LIMITS, "no_text"),
        (b" \n ", LIMITS, "no_text"),
        (pdf(["x"] * 3), replace(LIMITS, pages=2), "too_many_pages"),
        (b"word " * 3000, LIMITS, "text_too_long"),
        (b"%PDF-1.7\nnothing", LIMITS, "damaged_file"),
        (DEEP, LIMITS, "damaged_file"),
        (docx(["x"])[:400], LIMITS, "damaged_file"),
        (docx(["<unclosed>"]), LIMITS, "damaged_file"),
        (BOMB, LIMITS, "file_too_large"),
        (b"\x89PNG\r\n\x1a\n", LIMITS, "unsupported_file"),
        (b"\xff\x00binary\x80", LIMITS, "unsupported_file"),
    ],
    ids=[
        "encrypted", "scanned", "blank", "pages", "long", "not a pdf", "page loop",
        "cut off", "bad xml", "zip bomb", "png", "binary",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(data: bytes, limits: Limits, code: str) -> None:
    error = refused(data, limits=limits)
    assert error.code == code
    assert error.reason


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pathological stream would do the same; sleeping takes no time of other tests."""
    monkeypatch.setattr("refine_server.server.files.conversion.converter.START_SECONDS", 0.0)
    assert refused(HTML, limits=replace(LIMITS, seconds=0.01)).code == "too_slow"


def test_a_file_that_takes_too_much_memory_is_refused() -> None:
    data = b"<p>" + b"<b>x</b>" * 3_000_000
    limits = replace(LIMITS, memory_bytes=2**28, characters=2**30)
    assert refused(data, "a.html", limits).code in ("too_much_memory", "damaged_file")


def test_a_parser_can_open_nothing() -> None:
    """Neither files nor sockets: what a flaw of a parser could be used for."""
    program = f"""
import socket, sys
from refine_server.server.files.conversion import pdf, worker
from refine_server.server.files.conversion.found import Found
def read(data, limits):
    failures = []
    for attempt in (lambda: open("/etc/hostname"), socket.socket):
        try:
            attempt()
        except OSError as error:
            failures.append(error.errno)
    return Found(text=str(failures))
pdf.read = read
sys.argv = ["worker", "a.pdf", {json.dumps(json.dumps(asdict(LIMITS)))}]
worker.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=pdf(["x"]), capture_output=True, timeout=60
    )
    assert json.loads(done.stdout)["text"] == "[24, 24]", done.stderr  # EMFILE


def test_a_process_knows_no_setting_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_API_KEYS", "alice:secret")
    seen: dict[str, str] = {}
    made = asyncio.create_subprocess_exec

    async def observed(*command: str, env: dict[str, str], **options: object) -> object:
        seen.update(env)
        return await made(*command, env=env, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", observed)
    convert(HTML)
    assert "PATH" in seen
    assert not [name for name in seen if name.startswith("REFINE_")]
