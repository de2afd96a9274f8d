"""The text of a PDF file, page by page."""

import io
import logging

import pypdf
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

from refine_server.server.files.conversion.found import (
    ConversionError,
    Found,
    Limits,
    Page,
    cleaned,
    require_length,
)

ENCRYPTED = "is encrypted. Save it without a password first"
BETWEEN = "\n\n"
"""Text between two pages; it belongs to the first of them."""


def read(data: bytes, limits: Limits) -> Found:
    """Return the text of a PDF file, its title and its pages.

    Raises:
        ConversionError: it is encrypted, damaged, too long, or has no text.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        return _read(pypdf.PdfReader(io.BytesIO(data)), limits)
    except (FileNotDecryptedError, DependencyError):
        raise ConversionError("encrypted_file", ENCRYPTED) from None
    except LimitReachedError as error:
        raise ConversionError("file_too_large", f"is too large: {error}") from None
    except PyPdfError as error:
        raise ConversionError("damaged_file", f"is a damaged PDF document: {error}") from None


def _read(reader: pypdf.PdfReader, limits: Limits) -> Found:
    # Many files are encrypted with an empty password, only to forbid printing.
    if reader.is_encrypted and not reader.decrypt(""):
        raise ConversionError("encrypted_file", ENCRYPTED)
    count = len(reader.pages)
    if count > limits.pages:
        reason = f"has {count} pages; at most {limits.pages} are read"
        raise ConversionError("too_many_pages", reason)
    parts: list[str] = []
    pages: list[Page] = []
    characters = 0
    for number in range(count):
        text = cleaned(reader.pages[number].extract_text()).strip()
        pages.append(Page(start=characters, has_text=bool(text)))
        parts.append(text + (BETWEEN if number + 1 < count else ""))
        characters += len(parts[-1])
        require_length(characters, limits)
    if not any(page.has_text for page in pages):
        reason = f"has no text on its {count} pages. If they are scanned, run OCR first"
        raise ConversionError("no_text", reason)
    metadata = reader.metadata
    title = metadata.title if metadata is not None else None
    title = cleaned(str(title)).strip() if title else ""
    return Found(text="".join(parts), title=title or None, pages=tuple(pages))
