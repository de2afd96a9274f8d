"""What a conversion finds in a file, or why it finds nothing. Imports nothing but the library."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "markdown", "html", "docx", "pdf"]
"""Types of files whose text is read."""

UNWANTED = re.compile("[\x00\ud800-\udfff]")
"""Characters that a document must not have: NUL, and halves of surrogate pairs."""


class ConversionError(Exception):
    """No text can be read from a file.

    Args:
        code: of the error that the client gets.
        reason: what is wrong with the file and what to do; it follows the file's name.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page of a document."""

    start: int
    """Its first character in the document's text; it ends where the next page begins."""
    has_text: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a reader of one type finds in a file."""

    text: str
    title: str | None = None
    """As the file itself says."""
    pages: tuple[Page, ...] = ()
    """Empty for types without pages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedText(Found):
    """The text of a file, and the type of the file."""

    kind: Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What reading one file may take."""

    pages: int
    characters: int
    """The longest text."""
    seconds: float
    memory_bytes: int
    """Address space of the process that reads it."""


Read = Callable[[bytes, Limits], Found]
"""Reads a file of one type."""


def convert(data: bytes, kind: Kind, limits: Limits, read: Read) -> ConvertedText:
    """Return the text of a file.

    Raises:
        ConversionError: it has none, or is too long.
    """
    found = read(data, limits)
    text = cleaned(found.text)
    require_length(len(text), limits)
    if not text.strip():
        raise ConversionError("no_text", "has no text")
    return ConvertedText(kind=kind, text=text, title=found.title, pages=found.pages)


def cleaned(text: str) -> str:
    """Replace characters that a document must not have."""
    return UNWANTED.sub("\N{REPLACEMENT CHARACTER}", text)


def require_length(characters: int, limits: Limits) -> None:
    """Raise ConversionError if a text is too long."""
    if characters > limits.characters:
        reason = f"has more than {limits.characters} characters of text, the maximum"
        raise ConversionError("text_too_long", reason)
