"""The chunks of a document that can be evidence, found by words or named by the client."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from operator import itemgetter

from refine_server.ttt.evidence.chunks import Chunk, Offsets, cut_parts
from refine_server.ttt.evidence.lexical import score_by_words
from refine_server.ttt.evidence.passages import SEPARATOR_TOKENS
from refine_server.ttt.evidence.reading import Reading
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    DocumentSpan,
    Evidence,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.reports import Citation, page_of

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
    pages: tuple[int, ...] = ()
    """First character of each page of the document; empty where it has none."""

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

    @property
    def tokens(self) -> int:
        """Tokens of the evidence, with separators between its chunks."""
        chosen = (self.chunks[n] for n in self.chosen())
        return sum(chunk.end - chunk.start + SEPARATOR_TOKENS for chunk in chosen)

    def within(self, tokens: int) -> "Candidates":
        """Return the candidates with as much evidence as fits into so many tokens; maybe none."""
        count = self.count
        while count and (fitting := replace(self, count=count)).tokens > tokens:
            count -= 1
        return fitting if count else replace(self, count=0)

    def citations(self) -> tuple[Citation, ...]:
        """Cite the evidence."""
        return tuple(self._citation(n) for n in self.chosen())

    def _citation(self, number: int) -> Citation:
        chunk = self.chunks[number]
        text = self.document[chunk.first : chunk.last]
        words = chunk.first + len(text) - len(text.lstrip())  # a page may end in white space
        return Citation(
            start=chunk.first,
            end=chunk.last,
            text=text,
            score=None if self.scores is None else self.scores[number],
            page=page_of(words, self.pages),
        )

    def _by_score(self) -> list[int]:
        scores = self.scores or (0.0,) * len(self.chunks)
        return sorted(range(len(self.chunks)), key=lambda n: -scores[n])


def find_candidates(
    document: str,
    query: str,
    evidence: Evidence,
    offsets: Offsets,
    reading: Reading,
    longest: int,
) -> Candidates:
    """Find the chunks of what is read of a document that can be evidence.

    Args:
        document: the text.
        query: the request's query.
        evidence: how evidence is found.
        offsets: of the document's tokens.
        reading: what is read of it.
        longest: the most tokens that a chunk may have.

    Raises:
        RequestError: the client names a part that is not there, or not read.
    """
    if isinstance(evidence, EvidenceSpans):
        named = tuple(sorted(named_chunks(evidence, document, offsets), key=lambda c: c.start))
        for n, chunk in enumerate(named_chunks(evidence, document, offsets)):
            if not reading.has(chunk):
                raise _not_read(n)
        return Candidates(document=document, chunks=named, scores=None, count=len(named))
    parts = [(part.start, part.end) for part in reading.parts]
    chunks = cut_parts(document, offsets, min(evidence.tokens, longest), parts)
    scores = None
    if isinstance(evidence, EvidenceByWords):
        texts = [document[chunk.first : chunk.last] for chunk in chunks]
        scores = tuple(score_by_words(texts, evidence.words or query))
    return Candidates(document=document, chunks=tuple(chunks), scores=scores, count=evidence.count)


def named_chunks(evidence: Evidence | None, document: str, offsets: Offsets) -> list[Chunk]:
    """Return the parts of a document that the client names; none if it names none.

    Raises:
        RequestError: there is no such part.
    """
    if not isinstance(evidence, EvidenceSpans):
        return []
    return [_named(span, n, document, offsets) for n, span in enumerate(evidence.spans)]


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


def _not_read(number: int) -> RequestError:
    message = (
        f"evidence.spans.{number}: this part is not read, because the document is too long; "
        "on_overflow says what is read of it"
    )
    return RequestError(message, f"evidence.spans.{number}", "invalid_value")


def tokens_of(place: tuple[int, int], offsets: Offsets) -> tuple[int, int]:
    """Return the tokens that share a character with a place in their text; 0, 0 if none does."""
    first, last = place
    start = bisect_right(offsets, first, key=itemgetter(1))
    end = bisect_left(offsets, last, key=itemgetter(0))
    return (start, end) if start < end else (0, 0)
