"""What type a file is: by its content, and by its name only among kinds of text."""

import io
import re
import zipfile
from pathlib import PurePath

from refine_server.server.files.content import NoTextError, decode_text
from refine_server.server.files.conversion.found import ConversionError, Kind

ARCHIVE = b"PK\x03\x04"
"""How a ZIP archive begins."""
PDF_HEAD_BYTES = 1024
"""A PDF begins within so many bytes, as viewers accept it."""
HTML_BEGINS = re.compile(
    rb"(?:\s|<\?xml[^>]*>|<!--(?:(?!-->).)*-->)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
HEAD_BYTES = 4096
"""Where an HTML file says in which encoding it is."""


def plain_kind_of(data: bytes, filename: str) -> Kind | None:
    """Return the type of a file that is read as it is; None for one that needs a parser."""
    kind = None if data.startswith(ARCHIVE) else kind_of(data, filename)
    return kind if kind in ("text", "markdown") else None


def kind_of(data: bytes, filename: str) -> Kind:
    """Return the type of a file.

    Raises:
        ConversionError: it is none whose text is read.
    """
    if b"%PDF-" in data[:PDF_HEAD_BYTES]:
        return "pdf"
    if data.startswith(ARCHIVE):
        return _kind_of_archive(data)
    suffix = PurePath(filename).suffix.lower()
    if HTML_BEGINS.match(data[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")):
        return "html"
    if suffix in (".html", ".htm", ".xhtml") and b"<" in data:
        return "html"
    return "markdown" if suffix in (".md", ".markdown") else "text"


def _kind_of_archive(data: bytes) -> Kind:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, RecursionError) as error:
        reason = f"is a damaged archive (.docx files are archives): {error}"
        raise ConversionError("damaged_file", reason) from None
    if "word/document.xml" in names:
        return "docx"
    reason = "is a ZIP archive without a Word document; txt, md, html, docx and pdf can be read"
    raise ConversionError("unsupported_file", reason)


def text_of(data: bytes, kind: Kind) -> str:
    """Return the characters of a text file; those of HTML by the encoding that it names.

    Raises:
        ConversionError: it is no text.
    """
    try:
        return decode_text(data)
    except NoTextError as error:
        named = CHARSET.search(data[:HEAD_BYTES]) if kind == "html" else None
        if named is None:
            raise ConversionError("unsupported_file", str(error)) from None
        encoding = named[1].decode("ascii", "replace")
    try:
        return data.decode(encoding, "replace")
    except (LookupError, UnicodeError):
        reason = f"is in the encoding {encoding[:40]!r}, which is not known; send it in UTF-8"
        raise ConversionError("unsupported_file", reason) from None
