"""What the model reads of a document before a query: all of it, its evidence, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.alignment import align
from refine_server.ttt.evidence.candidates import (
    Candidates,
    find_candidates,
    named_chunks,
    tokens_of,
)
from refine_server.ttt.evidence.chunks import Chunk, Offsets
from refine_server.ttt.evidence.passages import SEPARATOR_TOKENS, join
from refine_server.ttt.evidence.reading import PASSAGES, DocumentReader, Reading
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    ContextStrategy,
    Evidence,
    EvidenceByWords,
    EvidenceSpans,
    OnOverflow,
    ReadContext,
)
from refine_server.ttt.interface.reports import Overflow
from refine_server.ttt.interface.requests import Limits

EncodeQuery = Callable[[str, str], list[int]]
"""Encodes what follows a document: given its tail, and passages that stand before the query."""

REPEATED_SHARE = 4
"""Evidence is repeated in one of so many parts of the room that a long document has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceCheck:
    """The evidence alone, behind which the best of several answers is the likeliest."""

    query: list[int]
    """The query without evidence before it; it follows the document as the other one does."""
    prompt: DocumentPrompt
    """The evidence in place of the document."""
    query_after_evidence: list[int]
    """What follows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """An encoded prompt around the query's context."""

    prompt: DocumentPrompt
    """What is read first."""
    query: list[int]
    """What follows: the query, with passages before it if they are repeated."""
    candidates: Candidates | None
    """What can be evidence; None where nothing needs any."""
    aim: tuple[tuple[int, int], ...]
    """Tokens of the prompt's document that an adaptation is aimed at: first, and one beyond the
    last. Empty where nothing is adapted on evidence, or where the model is to choose it."""
    overflow: Overflow | None
    """How the document was shortened; None where all of it is read, or evidence alone."""
    check: EvidenceCheck | None = None
    """By which the best of three answers is found; None where there is one."""
    read: ReadContext = "document"
    """What of the document stands before the query."""
    reading: Reading | None = None
    """The parts of the document that are read; None: all of it, or what was read before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query about a document."""

    words: str
    """What evidence and passages are searched by."""
    encode: EncodeQuery
    """Encodes it."""
    max_tokens: int
    """The longest answer."""
    param: str = "query"
    """The request's field."""
    code: str = "query_too_long"
    """The error if there is no room for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextEncoder:
    """Encodes what is read of one document before any number of queries."""

    document: str
    """The text."""
    strategy: ContextStrategy
    """What is read of it."""
    evidence: Evidence | None
    """How evidence is found; None: by words if the strategy or an adaptation needs it."""
    on_overflow: OnOverflow
    """What is done with a document that is too long."""
    template: PromptTemplate
    limits: Limits
    is_aimed: bool = False
    """Whether an adaptation is aimed at the evidence."""
    pages: tuple[int, ...] = ()
    """First character of each page of the document; empty where it has none."""
    room: int | None = None
    """The most tokens that are read of the document, the same for all queries; None: as many as
    there is room for beside each."""

    def encode(self, query: Query) -> Context:
        """Encode what is read for a query.

        Raises:
            RequestError: a text is empty or too long, or the evidence cannot be found as asked.
        """
        evidence = self._needed_evidence()
        if self.strategy != "document" and evidence and evidence.by in ("attention", "utility"):
            message = f"evidence.by: {evidence.by} needs the context to be document"
            raise RequestError(message, "evidence.by", "invalid_value")
        header = self.template.header_tokens
        one = _QueryContext(
            work=self, query=query, evidence=evidence, free=self._count_free(query, header)
        )
        return one.passages() if self.strategy == "passages" else one.document()

    def encode_behind(self, query: Query, tail: str, position: int) -> Context:
        """Encode a query behind a document that was read before, with evidence of its text.

        Args:
            query: the query.
            tail: the document's last characters, which were not read.
            position: tokens that were read.

        Raises:
            RequestError: a text is empty or too long, or the evidence cannot be found as asked.
        """
        evidence = self._needed_evidence()
        free = self._count_free(query, position)
        one = _QueryContext(work=self, query=query, evidence=evidence, free=free)
        return one.behind(tail)

    def _needed_evidence(self) -> Evidence | None:
        if self.evidence is None and (self.strategy != "document" or self.is_aimed):
            return EvidenceByWords()
        return self.evidence

    def _count_free(self, query: Query, tokens: int) -> int | None:
        """Return how many tokens fit beside others, the query and its answer; None: any number."""
        if self.limits.context_length is None:
            return None
        return self.limits.beside(tokens + len(query.encode("", "")), query.max_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class _QueryContext:
    """Encodes the context of one query."""

    work: ContextEncoder
    query: Query
    evidence: Evidence | None
    free: int | None
    """Tokens that are left to the document and to evidence; None: any number."""

    @property
    def room(self) -> int:
        """The most tokens that are read in place of the document."""
        if self.work.room is not None:
            return self.work.room
        longest = self.work.limits.document_tokens
        return longest if self.free is None else min(longest, self.free)

    def passages(self) -> Context:
        """Encode the evidence in place of the document."""
        work, template, evidence = self.work, self.work.template, self.evidence
        assert evidence is not None
        document = work.document
        _, offsets = template.locate_tokens(document, self.work.limits.sent_tokens)
        whole, longest = Reading.whole(document, offsets), max(self.room - SEPARATOR_TOKENS, 1)
        candidates = self._find(evidence, offsets, whole, longest)
        candidates = self._fitting(candidates)
        chosen = candidates.chosen()
        reading = Reading.of_parts(document, [candidates.chunks[n] for n in chosen])
        text, places = reading.text, reading.places
        prompt = template.encode_document(text, work.limits)
        query = self.query.encode(prompt.tail, "")
        aim: list[tuple[int, int]] = []
        if work.is_aimed:
            ids, offsets = template.locate_tokens(text, self.work.limits.document_tokens)
            to_prompt = align(ids, prompt.document)
            aimed = (places[chosen.index(n)] for n in candidates.best())
            spans = [tokens_of((place.first, place.last), offsets) for place in aimed]
            aim = [(to_prompt(start), to_prompt(end)) for start, end in spans]
        return Context(
            prompt=prompt,
            query=query,
            candidates=candidates,
            aim=_nonempty(aim),
            overflow=None,
            read="passages",
            reading=reading,
        )

    def _find(
        self, evidence: Evidence, offsets: Offsets, reading: Reading, longest: int
    ) -> Candidates:
        """Find what can be evidence in what is read of the document."""
        document, words = self.work.document, self.query.words
        found = find_candidates(document, words, evidence, offsets, reading, longest)
        return replace(found, pages=self.work.pages)

    def _fitting(self, candidates: Candidates) -> Candidates:
        """Return the candidates with as much evidence as there is room for.

        Raises:
            RequestError: the client names more than that.
        """
        fitting = candidates.within(self.room)
        if isinstance(self.evidence, EvidenceSpans) and fitting.count < candidates.count:
            message = (
                f"evidence.spans: {candidates.tokens} tokens; at most {self.room} are accepted"
            )
            raise RequestError(message, "evidence.spans", "document_too_long")
        return fitting

    def document(self) -> Context:
        """Encode the document, and its evidence before the query if that is to be repeated."""
        work, evidence = self.work, self.evidence
        reader = DocumentReader(
            template=work.template, limits=work.limits, on_overflow=work.on_overflow
        )
        if evidence is None and (whole := reader.read_whole(work.document, self.room)):
            return self._without_evidence(whole, None)
        own_ids, offsets = reader.locate(work.document, self.room)
        named = named_chunks(evidence, work.document, offsets)
        room, left = self._share(len(own_ids), named)
        words = self.query.words
        reading, prompt, overflow = reader.read(work.document, offsets, room, words, named)
        if evidence is None:
            return replace(self._without_evidence(prompt, overflow), reading=reading)
        longest = room if overflow is None else max(room // PASSAGES, 1)
        found = self._find(evidence, offsets, reading, longest)
        repeated = self._repeated(found, reading, left)
        query = self.query.encode(prompt.tail, repeated)
        self._require_place(prompt, query)
        check = None
        if work.strategy == "best" and repeated:
            check = self._check(prompt, repeated)
        candidates = self._in_prompt(found, reading, own_ids, prompt)
        aimed = (candidates.chunks[n] for n in candidates.chosen())
        return Context(
            prompt=prompt,
            query=query,
            candidates=candidates,
            aim=_nonempty([(chunk.start, chunk.end) for chunk in aimed]),
            overflow=overflow,
            check=check,
            read="document+passages" if repeated else "document",
            reading=reading,
        )

    def _without_evidence(self, prompt: DocumentPrompt, overflow: Overflow | None) -> Context:
        query = self.query.encode(prompt.tail, "")
        self._require_place(prompt, query)
        return Context(prompt=prompt, query=query, candidates=None, aim=(), overflow=overflow)

    def _require_place(self, prompt: DocumentPrompt, query: Sequence[int]) -> None:
        """Raise RequestError if a query does not fit behind a document of a fixed length."""
        if self.work.room is None:
            return
        read = len(prompt.header) + len(prompt.document)
        require_place(read, len(query), self.work.limits, self.query.param, self.query.code)

    def behind(self, tail: str) -> Context:
        """Encode the query behind a document that was read, with evidence of its text."""
        work, evidence = self.work, self.evidence
        candidates, repeated = None, ""
        if evidence is not None:
            _, offsets = work.template.locate_tokens(work.document, work.limits.sent_tokens)
            whole, longest = Reading.whole(work.document, offsets), work.limits.document_tokens
            candidates = self._find(evidence, offsets, whole, longest)
            repeated = self._repeated(candidates, whole, self.free)
        query = self.query.encode(tail, repeated)
        prompt = DocumentPrompt(header=[], document=[], tail=tail)
        return Context(prompt=prompt, query=query, candidates=candidates, aim=(), overflow=None)

    def _check(self, prompt: DocumentPrompt, evidence: str) -> EvidenceCheck:
        alone = self.work.template.encode_document(evidence, self.work.limits)
        return EvidenceCheck(
            query=self.query.encode(prompt.tail, ""),
            prompt=alone,
            query_after_evidence=self.query.encode(alone.tail, ""),
        )

    @property
    def _repeats(self) -> bool:
        """Whether evidence is read again before the query."""
        return self.work.strategy in ("document+passages", "best")

    def _share(self, tokens: int, named: Sequence[Chunk]) -> tuple[int, int | None]:
        """Share the room between a document and its evidence that is repeated.

        Args:
            tokens: of the whole document.
            named: the evidence, where the client names it.

        Returns:
            The most tokens that are read of the document, and that are repeated; None: any number.
        """
        if self.free is None or not self._repeats:
            return self.room, None
        if tokens <= self.room or self.work.room is not None:
            return self.room, max(self.free - min(tokens, self.room), 0)
        if isinstance(self.evidence, EvidenceByWords):
            wanted = self.evidence.count * (self.evidence.tokens + SEPARATOR_TOKENS)
        else:
            wanted = sum(chunk.end - chunk.start + SEPARATOR_TOKENS for chunk in named)
        repeated = min(wanted, self.free // REPEATED_SHARE)
        return min(self.work.limits.document_tokens, self.free - repeated), repeated

    def _repeated(self, candidates: Candidates, reading: Reading, left: int | None) -> str:
        """Return the text of the evidence that is read again before the query."""
        if not self._repeats:
            return ""
        fitting = candidates if left is None else candidates.within(left)
        evidence = [candidates.chunks[n] for n in fitting.chosen()]
        if _tokens(evidence) >= _tokens(reading.parts):  # it was just read
            return ""
        return join(self.work.document, evidence)[0]

    def _in_prompt(
        self,
        candidates: Candidates,
        reading: Reading,
        own_ids: Sequence[int],
        prompt: DocumentPrompt,
    ) -> Candidates:
        """Return the candidates with their places among the tokens of the prompt's document.

        Args:
            candidates: with their places among the document's own tokens.
            reading: what is read of the document.
            own_ids: the document's own tokens.
            prompt: what is read, encoded.
        """
        if reading.text == self.work.document:
            places = [(chunk.start, chunk.end) for chunk in candidates.chunks]
            to_prompt = align(own_ids, prompt.document)
        else:
            ids, offsets = self.work.template.locate_tokens(
                reading.text, self.work.limits.sent_tokens
            )
            ends = ((chunk.first, chunk.last) for chunk in candidates.chunks)
            places = [tokens_of((reading.place(a), reading.place(b)), offsets) for a, b in ends]
            to_prompt = align(ids, prompt.document)
        chunks = tuple(
            replace(chunk, start=to_prompt(start), end=to_prompt(end))
            for chunk, (start, end) in zip(candidates.chunks, places, strict=True)
        )
        return replace(candidates, chunks=chunks)


def require_place(read: int, tokens: int, limits: Limits, param: str, code: str) -> None:
    """Raise RequestError if the model has no positions for a text behind a document.

    Args:
        read: tokens of the document and what is before it.
        tokens: of the text.
        limits: have the longest sequence that the model was trained for.
        param: the text's field.
        code: the error.
    """
    if limits.context_length is None:
        return
    left = limits.context_length - read - 1
    if tokens > left:
        message = (
            f"{param}: {tokens} tokens; at most {left} follow this document in the model's "
            f"{limits.context_length}, with one for the answer"
        )
        raise RequestError(message, param, code)


def _tokens(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.end - chunk.start for chunk in chunks)


def _nonempty(places: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Drop places without a token: what the prompt's document leaves to its tail."""
    return tuple((start, end) for start, end in places if start < end)
