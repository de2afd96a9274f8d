"""The words of a text, in any script: what lexical ranking counts and quotes are compared by."""

import re
from collections.abc import Iterator

WORD = re.compile(r"\w+")
UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"  # Han, further planes
    "]"
)
"""Characters of scripts that put no spaces between words."""
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\dA-Za-z_]+")
"""The parts of an identifier: of camelCase, of snake_case, and its numbers."""


def units(text: str) -> Iterator[tuple[int, int]]:
    """Find the words of a text, and the single characters of scripts without spaces.

    Yields:
        The first character of each, and one beyond its last.
    """
    for word in WORD.finditer(text):
        start = word.start()
        for character in UNSPACED.finditer(text, word.start(), word.end()):
            if start < character.start():
                yield start, character.start()
            yield character.span()
            start = character.end()
        if start < word.end():
            yield start, word.end()


def terms(text: str) -> list[str]:
    """List the terms of a text that lexical ranking compares, in lower case.

    A word is a term, and so are the parts of an identifier. Of scripts without spaces every pair of
    neighbouring characters is a term, as is usual where no dictionary segments them.
    """
    found: list[str] = []
    previous: tuple[int, str] | None = None  # end and text of an unspaced character
    for start, end in units(text):
        word = text[start:end]
        if not UNSPACED.match(word):
            previous = None
            found.append(word.casefold())
            parts = PARTS.findall(word)
            if len(parts) > 1:
                found += [part.casefold() for part in parts]
            continue
        if previous is not None and previous[0] == start:
            found.append(previous[1] + word)
        elif end == len(text) or not UNSPACED.match(text, end):
            found.append(word)  # a single character has no neighbour to be paired with
        previous = end, word
    return found
