"""A document cut into chunks of whole sentences, lines or rows, with their places in the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from refine_server.ttt.evidence.boundaries import levels

Offsets = Sequence[tuple[int, int]]
"""The characters of each token in the client's document: first, and one beyond the last."""


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

    A chunk ends where the text is separated best in the second half of those tokens, of equal
    places at the last one; the last two chunks share what is left so that none is very short. Every
    token is in one chunk. No chunk ends within a character, unless that character alone has more
    tokens than a chunk. The time is linear in the length of the document.

    Args:
        text: the document.
        offsets: of its tokens.
        tokens: the most tokens of a chunk, at least 1.
    """
    total = len(offsets)
    places, level = _places(text, offsets), levels(text)
    chunks: list[Chunk] = []
    start = 0
    while start < total:
        end = total
        if total - start > tokens:
            longest = min(start + tokens, total - tokens // 4)
            shortest = min(start + max(tokens // 2, 1), longest)
            ends = [
                (level[place], at)
                for at in range(shortest, longest + 1)
                if (place := places[at]) is not None
            ]
            _, end = max(ends, default=(0, longest))
        first, last = offsets[start][0], max(last for _, last in offsets[start:end])
        chunks.append(Chunk(start=start, end=end, first=first, last=last))
        start = end
    return chunks


def _places(text: str, offsets: Offsets) -> list[int | None]:
    """Return the first character of each token; None where it has begun in an earlier token.

    A token without characters begins where the next one does.
    """
    total = len(offsets)
    begins = [len(text)] * (total + 1)  # the first character of this and all later tokens
    for at in reversed(range(total)):
        first, last = offsets[at]
        begins[at] = min(begins[at + 1], first) if first < last else begins[at + 1]
    places: list[int | None] = []
    reached = 0
    for begin, (_, last) in zip(begins, offsets, strict=False):
        places.append(begin if reached <= begin else None)
        reached = max(reached, last)
    return places
