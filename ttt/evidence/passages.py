"""The chunks that fit into a number of tokens, and chunks as a text of their own."""

from collections.abc import Sequence
from typing import NamedTuple

from refine_server.ttt.evidence.chunks import Chunk

SEPARATOR = "\n\n"
"""What is written between passages that do not follow one another in the document."""
SEPARATOR_TOKENS = 2
"""The most tokens that a separator takes in any tokenizer."""


def fit(chunks: Sequence[Chunk], scores: Sequence[float], budget: int) -> list[Chunk]:
    """Choose the chunks with the highest scores that fit into a number of tokens.

    A chunk that no longer fits is left out, and those after it are still tried. What scores 0 fills
    what is left, from the document's beginning on, so that a query that has no word in common with
    the document gets its beginning.

    Args:
        chunks: of one document, in its order.
        scores: [chunks].
        budget: tokens that the chosen chunks and the separators between them may take.

    Returns:
        The chosen chunks in the document's order.
    """
    chosen: list[int] = []
    for place in sorted(range(len(scores)), key=lambda place: -scores[place]):
        cost = chunks[place].end - chunks[place].start + SEPARATOR_TOKENS
        if cost <= budget:
            chosen.append(place)
            budget -= cost
    return [chunks[place] for place in sorted(chosen)]


class Place(NamedTuple):
    """Where a chunk stands in a text that was joined of chunks."""

    first: int
    """The chunk's first character in the text."""
    last: int
    """One beyond its last character there."""
    source: int
    """The same first character in the document."""


def join(document: str, chunks: Sequence[Chunk]) -> tuple[str, list[Place]]:
    """Join chunks of a document, in its order, to a text; also return their places in it.

    Chunks that follow one another stand as they do in the document; ``SEPARATOR`` stands between
    all others, in place of the white space around them.
    """
    text, places = "", list[Place]()
    for n, chunk in enumerate(chunks):
        before = chunks[n - 1] if n else None
        behind = chunks[n + 1] if n + 1 < len(chunks) else None
        first, last = chunk.first, chunk.last
        if before is not None and before.end == chunk.start:
            text += document[before.last : first]
        else:
            first = _first_character(document, first, last)
            text += SEPARATOR if text else ""
        if behind is None or behind.start != chunk.end:
            last = first + len(document[first:last].rstrip())
        places.append(Place(len(text), len(text) + last - first, first))
        text += document[first:last]
    return text, places


def _first_character(document: str, first: int, last: int) -> int:
    """Skip white space, but for the indentation of a line that begins in the chunk."""
    text = document[first:last].lstrip()
    visible = last - len(text)
    line = document.rfind("\n", 0, visible) + 1
    return line if first <= line else visible
