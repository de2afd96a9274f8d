"""Where a text can be cut, and how much each place separates what stands before and behind it.

Every pattern matches a gap between two units (sentences, lines, words): the whitespace between
them, or nothing where a script writes none. Each place in a gap gets the gap's level. The patterns
are tried in order, and a later one overrides an earlier one, so their order is no ranking.
"""

from enum import IntEnum

import regex

from refine_server.ttt.evidence.words import UNSPACED

_BLANK = r"[^\S\r\n\v\f\x85\u2028\u2029]"
"""Whitespace within a line."""
_CLOSING = r"[\p{Pe}\p{Pf}\"'*_]{0,3}"
"""What may stand between the end of a sentence and the gap after it: quotes, brackets, markup."""
_FULL_STOP = r"[.!?…؟۔።]"
"""Sentence ends that a space follows."""
_WIDE_STOP = r"[。！？｡．།॥।]"
"""Sentence ends that nothing needs to follow."""


class Level(IntEnum):
    """How much a place separates; the higher, the better a text is cut there."""

    INSIDE = 0
    """Inside what a reader sees as one character, e.g. between a letter and its accent."""
    CHARACTER = 1
    """Between two characters of a word."""
    EDGE = 2
    """Between a word and a punctuation mark."""
    WORD = 3
    """Between two words, or two characters of a script without spaces."""
    CLAUSE = 4
    """After a comma, colon or semicolon."""
    WRAPPED_LINE = 5
    """After a line that ends within a sentence, as in prose of a fixed width."""
    SENTENCE = 6
    """After a sentence."""
    LINE = 7
    """After a line that stands for itself: a list item, a table row, a line of code."""
    PARAGRAPH = 8
    """After an empty line, or before a heading."""


_GAPS = [
    (Level.EDGE, r"(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)"),
    (Level.WORD, rf"\s++|(?<=[{UNSPACED}])|(?=[{UNSPACED}])"),
    (Level.CLAUSE, r"(?<=[,;:،؛—–])\s++|(?<=[、，：；])\s*+"),
    # Neither an initial ("J. Smith"), nor the number of a list item, nor an abbreviation that a
    # lower-case word follows ends a sentence.
    (
        Level.SENTENCE,
        rf"(?<={_FULL_STOP}{_CLOSING})(?<!\b\p{{Lu}}\.)(?<!^{_BLANK}{{0,8}}\p{{N}}{{1,3}}\.)"
        rf"\s++(?!\p{{Ll}})|(?<={_WIDE_STOP}{_CLOSING})\s*+(?![\p{{Pe}}\p{{Pf}}。！？])",
    ),
    (Level.LINE, rf"(?<!\s){_BLANK}*+\R\s*+"),
    (
        Level.WRAPPED_LINE,
        rf"(?<=[\p{{L}}\p{{N}},\p{{Pd}}]){_BLANK}*+\R{_BLANK}*+(?=[\p{{Ll}}\p{{Lo}}])",
    ),
    (
        Level.PARAGRAPH,
        rf"(?<!\s){_BLANK}*+\R(?:{_BLANK}*+\R\s*+|{_BLANK}*+(?=\#{{1,6}}{_BLANK}))",
    ),
    # An indented line begins with its indentation, so that it is not cut off.
    (Level.WORD, rf"(?<=\R{_BLANK}){_BLANK}*+(?!\R)"),
]
_PATTERNS = [(level, regex.compile(gap, regex.V1 | regex.MULTILINE)) for level, gap in _GAPS]
_CHARACTER = regex.compile(r"\X")
_LINE_BREAK = regex.compile(r"\r\n")
"""The only character of ASCII that has two parts."""


def levels(text: str) -> bytearray:
    """Return the ``Level`` of every place in a text: [length + 1], place c stands before text[c].

    The time is linear in the length. The text's beginning and end are paragraphs.
    """
    found = bytearray([Level.CHARACTER]) * (len(text) + 1)
    for level, pattern in _PATTERNS:
        for gap in pattern.finditer(text):
            start, end = gap.span()
            found[start : end + 1] = bytes([level]) * (end + 1 - start)
    for character in (_LINE_BREAK if text.isascii() else _CHARACTER).finditer(text):
        start, end = character.span()
        if end > start + 1:
            found[start + 1 : end] = bytes(end - start - 1)
    found[0] = found[-1] = Level.PARAGRAPH
    return found
