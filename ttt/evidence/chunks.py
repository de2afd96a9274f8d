"""A document cut into chunks of whole sentences, lines or rows, with their places in the text."""

from collections.abc import Iterable, Iterator, Sequence
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

    @classmethod
    def of(cls, offsets: Offsets, start: int, end: int) -> "Chunk":
        """Return the chunk of tokens ``start`` to ``end``, of which there is at least one."""
        last = max(last for _, last in offsets[start:end])
        return cls(start=start, end=end, first=offsets[start][0], last=last)


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
    return cut_parts(text, offsets, tokens, [(0, len(offsets))])


def cut_parts(
    text: str, offsets: Offsets, tokens: int, parts: Iterable[tuple[int, int]]
) -> list[Chunk]:
    """Cut parts of a document, each by itself, as ``cut`` does.

    Args:
        text: the whole document.
        offsets: of its tokens.
        tokens: the most tokens of a chunk, at least 1.
        parts: first token of each part, and one beyond its last.
    """
    parts = list(parts)
    if all(end - start <= tokens for start, end in parts):  # nothing is to be cut
        return [Chunk.of(offsets, start, end) for start, end in parts if start < end]
    places, level = _places(text, offsets), levels(text)
    return [chunk for part in parts for chunk in _cut_part(offsets, places, level, tokens, *part)]


def _cut_part(
    offsets: Offsets,
    places: Sequence[int | None],
    level: bytearray,
    tokens: int,
    start: int,
    stop: int,
) -> Iterator[Chunk]:
    while start < stop:
        end = stop
        if stop - start > tokens:
            longest = min(start + tokens, stop - tokens // 4)
            shortest = min(start + max(tokens // 2, 1), longest)
            ends = [
                (level[place], at)
                for at in range(shortest, longest + 1)
                if (place := places[at]) is not None
            ]
            _, end = max(ends, default=(0, longest))
        yield Chunk.of(offsets, start, end)
        start = end


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
