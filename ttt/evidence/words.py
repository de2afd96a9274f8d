"""The words of a text, in any script: what lexical ranking counts and quotes are compared by."""

import unicodedata
from collections.abc import Iterator

import regex

UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Bopomofo}\p{Yi}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Balinese}\p{Javanese}\p{Tai_Le}\p{New_Tai_Lue}"
)
"""Scripts that put no spaces between words, as the inside of a character class."""
IDEOGRAPH = regex.compile(r"\p{Unified_Ideograph}")

_UNIT = regex.compile(rf"[{UNSPACED}]\p{{M}}*+|[\w\p{{M}}--[{UNSPACED}]]+", regex.V1)
_PAIRED = rf"[{UNSPACED}\p{{Hangul}}]"
"""Scripts whose words are found by pairs of characters: no spaces part them, or, in Korean, spaces
part words together with the particles that follow them."""
_TERM = regex.compile(
    rf"(?P<number>\p{{N}}+(?:[.,]\p{{N}}+)+)"
    rf"|(?P<paired>(?:{_PAIRED}\p{{M}}*+)+)"
    rf"|[\w\p{{M}}--{_PAIRED}]+",
    regex.V1,
)
_THOUSANDS = regex.compile(r"(?<=^\p{N}{1,3}(?:,\p{N}{3})*),(?=\p{N}{3}(?!\p{N}))")
_PART = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{L}\p{M}--\p{Lu}]+|\p{N}+", regex.V1)
"""A part of an identifier: HTTPServer_v2 is HTTP, Server, v and 2."""


def units(text: str) -> Iterator[tuple[int, int]]:
    """Find the words of a text, and the single characters of scripts without spaces.

    Yields:
        The first character of each, and one beyond its last.
    """
    for unit in _UNIT.finditer(text):
        yield unit.span()


def terms(text: str) -> list[str]:
    """List the terms of a text that lexical ranking compares.

    Case and compatibility variants of characters do not count. A word is a term, and so are the
    parts of an identifier, a version or a date. Of scripts without spaces and of Korean every pair
    of neighbouring characters is a term, as is usual where no dictionary segments them, and so is
    every ideograph.
    """
    normal = unicodedata.normalize("NFKC", text)
    return [term.casefold() for match in _TERM.finditer(normal) for term in _terms_of(match)]


def _terms_of(match: "regex.Match[str]") -> Iterator[str]:
    found = match.group()
    if match["paired"]:
        yield from _pairs(found)
        return
    if match["number"]:
        found = _THOUSANDS.sub("", found)
    yield found
    parts = _PART.findall(found)
    if parts != [found]:
        yield from parts


def _pairs(run: str) -> Iterator[str]:
    """Yield neighbouring characters in pairs, and those that are words by themselves."""
    for at, character in enumerate(run):
        if len(run) == 1 or IDEOGRAPH.match(character):
            yield character
        if at + 1 < len(run):
            yield run[at : at + 2]
