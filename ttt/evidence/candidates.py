"""The parts of a document that can be evidence, and those of them that are."""

from collections.abc import Sequence
from dataclasses import dataclass

from refine_server.ttt.evidence.chunks import Chunk, Offsets
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import DocumentSpan
from refine_server.ttt.interface.reports import Citation

AIMED_SHARE = 4
"""Behind passages an adaptation is aimed at one of so many of them: aimed at all that is there, it
would have no aim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The chunks of a document that can be evidence, and how well they fit the query."""

    document: str
    chunks: tuple[Chunk, ...]
    """In the document's order."""
    scores: tuple[float, ...] | None
    """Of the chunks; None where the model is to score them, or where the client named them."""
    count: int
    """The most chunks that are evidence."""

    def chosen(self) -> list[int]:
        """Return the numbers of the chunks that are evidence, in the document's order.

        The best ones that have anything in common with the query, or the first ones where none has.
        """
        scores = self.scores
        if scores is None or not any(score > 0 for score in scores):
            return list(range(min(self.count, len(self.chunks))))
        return sorted(n for n in self._by_score()[: self.count] if scores[n] > 0)

    def best(self) -> list[int]:
        """Return the numbers of the best ``1 / AIMED_SHARE`` of the evidence."""
        chosen = self.chosen()
        ranked = [n for n in self._by_score() if n in set(chosen)]
        return sorted(ranked[: -(-len(chosen) // AIMED_SHARE)])

    def citations(self) -> tuple[Citation, ...]:
        """Cite the evidence."""
        return tuple(
            Citation(
                start=(chunk := self.chunks[n]).first,
                end=chunk.last,
                text=self.document[chunk.first : chunk.last],
                score=None if self.scores is None else self.scores[n],
            )
            for n in self.chosen()
        )

    def _by_score(self) -> list[int]:
        scores = self.scores or (0.0,) * len(self.chunks)
        return sorted(range(len(self.chunks)), key=lambda n: -scores[n])


def named_chunks(spans: Sequence[DocumentSpan], document: str, offsets: Offsets) -> list[Chunk]:
    """Return the parts of a document that the client names, in the document's order.

    Args:
        spans: the parts, in characters.
        document: the text.
        offsets: of its tokens.

    Raises:
        RequestError: a part has no text.
    """
    chunks = [_named(span, n, document, offsets) for n, span in enumerate(spans)]
    return sorted(chunks, key=lambda chunk: chunk.start)


def _named(span: DocumentSpan, number: int, document: str, offsets: Offsets) -> Chunk:
    first, last = span.start, span.end
    if not (first < last <= len(document) and document[first:last].strip()):
        message = (
            f"evidence.spans.{number}: {first} to {last} is no text of the document, which has "
            f"{len(document)} characters"
        )
        raise RequestError(message, f"evidence.spans.{number}", "invalid_value")
    start, end = tokens_of((first, last), offsets)
    return Chunk(start=start, end=end, first=first, last=last)


def tokens_of(place: tuple[int, int], offsets: Offsets) -> tuple[int, int]:
    """Return the tokens that share a character with a place in their text."""
    first, last = place
    inside = [n for n, (a, b) in enumerate(offsets) if a < last and first < b]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
