"""A document cut into chunks of whole sentences, lines or rows, with their places in the text."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

Offsets = Sequence[tuple[int, int]]
"""The characters of each token in the client's document: first, and one beyond the last."""

BREAKS = (
    re.compile(r"\n\s*\n\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"[.!?;:]+[\"'\u2019\u201d)\]]*\s+|[\u3002\uff01\uff1f\uff1b]+[\u300d\u300f]*\s*"),
    re.compile(r"\s+|[\u3001\uff0c|]\s*"),
)
"""Where a chunk may end, the best kind first: behind a paragraph, a line or a table's row, a
sentence (of Chinese and Japanese too), a word."""
WHITE_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A part of a document."""

    start: int
    """The chunk's first token."""
    end: int
    """One beyond its last token."""
    first: int
    """Its first character in the client's document."""
    last: int
    """One beyond its last character."""


def cut(text: str, offsets: Offsets, tokens: int) -> list[Chunk]:
    """Cut a document into chunks of at most ``tokens`` tokens each.

    A chunk ends behind the best break in its last two thirds: a paragraph, a line, a sentence or a
    word. Every token is in one chunk. No chunk ends within a character, unless that character alone
    has more tokens than a chunk.

    Args:
        text: the document.
        offsets: of its tokens.
        tokens: the most tokens of a chunk, at least 1.
    """
    breaks = [sorted({match.end() for match in kind.finditer(text)}) for kind in BREAKS]
    chunks: list[Chunk] = []
    start = 0
    while start < len(offsets):
        end = min(start + tokens, len(offsets))
        if end < len(offsets):
            end = _best_end(text, offsets, start, end, breaks)
        first, last = offsets[start][0], max(last for _, last in offsets[start:end])
        chunks.append(Chunk(start=start, end=end, first=first, last=last))
        start = end
    return chunks


def _best_end(
    text: str, offsets: Offsets, start: int, longest: int, breaks: Sequence[Sequence[int]]
) -> int:
    """Choose where a chunk of tokens from ``start`` on ends, at ``longest`` the latest."""
    ends = range(longest, start, -1)
    whole = [n for n in ends if offsets[n][0] >= offsets[n - 1][1]]  # not within a character
    late = [n for n in whole if n - start > (longest - start) // 3]
    for places in breaks:
        for end in late:
            before = offsets[end - 1][1]
            behind = WHITE_SPACE.match(text, max(offsets[end][0], before))
            assert behind is not None
            at = bisect_left(places, before)
            if at < len(places) and places[at] <= behind.end():
                return end
    return whole[0] if whole else longest
