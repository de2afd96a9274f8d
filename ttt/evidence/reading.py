"""What is read of a document: all of it, or parts of it where it is too long.

Too long is what exceeds the server's limit, or does not fit beside the query and the answer into
the sequences that the model was trained for.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.chunks import Chunk, Offsets, cut
from refine_server.ttt.evidence.lexical import score_by_words
from refine_server.ttt.evidence.passages import SEPARATOR_TOKENS, Place, fit, join
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import OnOverflow
from refine_server.ttt.interface.reports import LeftOut, Overflow
from refine_server.ttt.interface.requests import Limits

PASSAGE_TOKENS = 128
"""The most tokens of a passage that a long document is cut into."""
PASSAGES = 8
"""The fewest passages that a short room is divided among."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The text that is read of a document, and where its parts come from."""

    text: str
    parts: tuple[Chunk, ...]
    """The parts of the document that are read, in its order."""
    places: tuple[Place, ...]
    """Of the parts in the text."""

    @classmethod
    def whole(cls, document: str, offsets: Offsets) -> "Reading":
        """Return the reading of the whole document, of at least one token."""
        part = Chunk.of(offsets, 0, len(offsets))
        return cls(text=document, parts=(part,), places=(Place(0, len(document), 0),))

    @classmethod
    def of_parts(cls, document: str, parts: Sequence[Chunk]) -> "Reading":
        """Return the reading of parts of a document."""
        text, places = join(document, parts)
        return cls(text=text, parts=tuple(parts), places=tuple(places))

    def place(self, character: int) -> int:
        """Return where a character of the document stands in the text, or what is next to it."""
        part = max(bisect_right(self.parts, character, key=lambda part: part.first) - 1, 0)
        first, last, source = self.places[part]
        return min(max(first + character - source, first), last)

    def has(self, chunk: Chunk) -> bool:
        """Return whether all of a chunk of the document is read."""
        return any(part.start <= chunk.start and chunk.end <= part.end for part in self.parts)

    def left_out(self, document: str) -> tuple[LeftOut, ...]:
        """Return the parts of the document that are not read, white space aside."""
        read = [(0, 0), *((part.first, part.last) for part in self.parts)]
        gaps = [(a[1], b[0]) for a, b in pairwise([*read, (len(document), len(document))])]
        return tuple(
            LeftOut(start=start, end=end) for start, end in gaps if document[start:end].strip()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentReader:
    """Encodes what is read of documents, within a room."""

    template: PromptTemplate
    limits: Limits
    on_overflow: OnOverflow
    """What is done with a document that does not fit."""

    def read_whole(self, document: str, room: int) -> DocumentPrompt | None:
        """Encode the whole document; return None where it is to be shortened.

        Raises:
            RequestError: the document is empty, or too long for what is done with long ones.
        """
        longest = self._longest(room)
        limits = replace(self.limits, document_tokens=longest)
        prompt = self.template.encode_document(document, limits)
        return prompt if len(prompt.document) <= room else None

    def locate(self, document: str, room: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of the whole document and their characters.

        Raises:
            RequestError: the document is empty, or too long for what is done with long ones.
        """
        return self.template.locate_tokens(document, self._longest(room))

    def _longest(self, room: int) -> int:
        return room if self.on_overflow == "error" else self.limits.sent_tokens

    def read(
        self,
        document: str,
        offsets: Offsets,
        room: int,
        query: str | None,
        named: Sequence[Chunk] = (),
    ) -> tuple[Reading, DocumentPrompt, Overflow | None]:
        """Encode the document, shortened where it has more tokens than there is room for.

        Args:
            document: the text.
            offsets: of its tokens.
            room: the most tokens that are read.
            query: chooses passages; None where none is known.
            named: chunks that the client named; passages that have a part of them come first.

        Raises:
            RequestError: the document is too long and must not be shortened, or nothing of it fits.
        """
        prompt = self.read_whole(document, room) if len(offsets) <= room else None
        if prompt is not None:
            return Reading.whole(document, offsets), prompt, None
        excess, budget = 0, room
        while excess > 0 or prompt is None:
            # Some tokens are others where a part begins or ends.
            budget -= excess
            reading = self._shortened(document, offsets, budget, query, named)
            limits = replace(self.limits, document_tokens=self.limits.sent_tokens)
            prompt = self.template.encode_document(reading.text, limits)
            excess = len(prompt.document) - room
        return reading, prompt, self._overflow(document, offsets, reading, prompt)

    def _shortened(
        self,
        document: str,
        offsets: Offsets,
        budget: int,
        query: str | None,
        named: Sequence[Chunk],
    ) -> Reading:
        if self.on_overflow == "truncate_middle" or query is None:
            parts = _ends(offsets, budget)
        else:
            parts = _best_passages(document, offsets, budget, query, named)
        if not parts:
            message = f"document: nothing of its {len(offsets)} tokens fits beside the query"
            raise RequestError(message, "document", "document_too_long")
        return Reading.of_parts(document, parts)

    def _overflow(
        self, document: str, offsets: Offsets, reading: Reading, prompt: DocumentPrompt
    ) -> Overflow | None:
        left_out = reading.left_out(document)
        if self.on_overflow == "error" or not left_out:
            return None
        return Overflow(
            handled=self.on_overflow,
            sent_tokens=len(offsets),
            read_tokens=len(prompt.document),
            left_out=left_out,
        )


def _ends(offsets: Offsets, budget: int) -> list[Chunk]:
    """Return a document's beginning and its end, of equal size, as LongBench cuts documents."""
    tokens = max(budget - SEPARATOR_TOKENS, 1)
    head = -(-tokens // 2)
    ends = [(0, head), (len(offsets) - (tokens - head), len(offsets))]
    return [Chunk.of(offsets, start, end) for start, end in ends if start < end]


def _best_passages(
    document: str, offsets: Offsets, budget: int, query: str, named: Sequence[Chunk]
) -> list[Chunk]:
    """Return the passages that fit the query best, and those that have a named chunk."""
    passages = cut(document, offsets, max(min(PASSAGE_TOKENS, budget // PASSAGES), 1))
    scores = score_by_words([document[chunk.first : chunk.last] for chunk in passages], query)
    best = max(scores)
    for n, passage in enumerate(passages):
        if any(passage.start < chunk.end and chunk.start < passage.end for chunk in named):
            scores[n] += best + 1
    return fit(passages, scores, budget)
