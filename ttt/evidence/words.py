"""The words of a text, in any script: what lexical ranking counts and quotes are compared by.

Texts are compared in Unicode's form NFKC and without case. Scripts that put no spaces between words
are segmented into pairs of neighbouring characters, as search engines do (Lucene's CJKAnalyzer):
unlike a dictionary (jieba for Chinese), pairs know every name, need no language to be told, and
segment a query as they do the document.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    rf"(?P<clitic>(?<=[^\W\d_]['’])(?i:s|t|d|m|ll|re|ve)(?!\w))"
    rf"|(?P<number>\p{{N}}+(?:[.,]\p{{N}}+)+)"
    rf"|(?P<paired>(?:{_PAIRED}\p{{M}}*+)+)"
    rf"|[\w\p{{M}}--{_PAIRED}]+",
    regex.V1,
)
_THOUSANDS = regex.compile(r"(?<=^\p{N}{1,3}(?:,\p{N}{3})*),(?=\p{N}{3}(?!\p{N}))")
_GRAPHEME = regex.compile(r"\X")
_PART = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{L}\p{M}--\p{Lu}]+|\p{N}+", regex.V1)
"""A part of an identifier: HTTPServer_v2 is HTTP, Server, v and 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalText:
    """A text in form NFKC, whose characters know where they come from."""

    text: str
    """The text in form NFKC."""
    starts: Sequence[int]
    """For each of its characters, the first character in the original that makes it."""
    ends: Sequence[int]
    """And one beyond the last."""

    @classmethod
    def of(cls, text: str) -> "NormalText":
        """Normalise a text."""
        if unicodedata.is_normalized("NFKC", text):
            return cls(text=text, starts=range(len(text)), ends=range(1, len(text) + 1))
        pieces: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        # No character is composed of parts of two graphemes.
        for grapheme in _GRAPHEME.finditer(text):
            pieces.append(unicodedata.normalize("NFKC", grapheme.group()))
            starts += [grapheme.start()] * len(pieces[-1])
            ends += [grapheme.end()] * len(pieces[-1])
        return cls(text="".join(pieces), starts=starts, ends=ends)


class Unit(NamedTuple):
    """A word, or a single character of a script without spaces."""

    start: int
    """Its first character in the text."""
    end: int
    """One beyond its last character there."""
    key: str
    """What is compared of it."""


def units(text: str) -> Iterator[Unit]:
    """Find the words of a text, and the single characters of scripts without spaces."""
    normal = NormalText.of(text)
    for unit in _UNIT.finditer(normal.text):
        start, end = unit.span()
        yield Unit(normal.starts[start], normal.ends[end - 1], unit.group().casefold())


def terms(text: str) -> list[str]:
    """List the terms of a text that lexical ranking compares.

    Case and compatibility variants of characters do not count. A word of any length is a term, and
    so are the parts of an identifier, a version or a date; what English contracts to an apostrophe
    is none. Of scripts without spaces and of Korean every pair
    of neighbouring characters is a term, as is usual where no dictionary segments them, and so is
    every ideograph.
    """
    normal = unicodedata.normalize("NFKC", text)
    return [term.casefold() for match in _TERM.finditer(normal) for term in _terms_of(match)]


def _terms_of(match: "regex.Match[str]") -> Iterator[str]:
    found = match.group()
    if match["clitic"]:
        return
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
