"""What the model reads of a document before a query: all of it, its evidence, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.candidates import (
    Candidates,
    find_candidates,
    named_chunks,
    tokens_of,
)
from refine_server.ttt.evidence.chunks import Chunk
from refine_server.ttt.evidence.passages import SEPARATOR_TOKENS, join
from refine_server.ttt.evidence.reading import PASSAGES, DocumentReader, Reading
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    Evidence,
    EvidenceByWords,
    EvidenceSpans,
    ReadContext,
)
from refine_server.ttt.interface.reports import Overflow
from refine_server.ttt.interface.requests import AnswerRequest, Limits

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


def encode_context(work: AnswerRequest, template: PromptTemplate, limits: Limits) -> Context:
    """Encode what the model reads for a request.

    Raises:
        RequestError: a text is empty or too long, or the evidence cannot be found as asked.
    """
    evidence = work.evidence
    needed = work.context != "document" or work.adapt.on.kind == "evidence"
    if evidence is None and needed:
        evidence = EvidenceByWords()
    if work.context != "document" and evidence and evidence.by in ("attention", "utility"):
        message = f"evidence.by: {evidence.by} needs the context to be document"
        raise RequestError(message, "evidence.by", "invalid_value")
    encoder = _ContextEncoder(
        work=work,
        evidence=evidence,
        template=template,
        limits=limits,
        free=_count_free(work, template, limits),
    )
    return encoder.passages() if work.context == "passages" else encoder.document()


def _count_free(work: AnswerRequest, template: PromptTemplate, limits: Limits) -> int | None:
    """Return how many tokens are left to the document and to evidence; None: any number."""
    if limits.context_length is None:
        return None
    query_tokens = len(template.encode_query(work.query, limits))
    return limits.beside(template.header_tokens + query_tokens, work.sampling.max_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ContextEncoder:
    """Encodes one request's context."""

    work: AnswerRequest
    evidence: Evidence | None
    template: PromptTemplate
    limits: Limits
    free: int | None
    """Tokens that are left to the document and to evidence; None: any number."""

    @property
    def room(self) -> int:
        """The most tokens that are read in place of the document."""
        longest = self.limits.document_tokens
        return longest if self.free is None else min(longest, self.free)

    def passages(self) -> Context:
        """Encode the evidence in place of the document."""
        work, template, evidence = self.work, self.template, self.evidence
        assert evidence is not None
        document = work.document
        _, offsets = template.locate_tokens(document, self.limits.sent_tokens)
        whole, longest = Reading.whole(document, offsets), max(self.room - SEPARATOR_TOKENS, 1)
        candidates = find_candidates(document, work.query, evidence, offsets, whole, longest)
        candidates = self._fitting(candidates)
        chosen = candidates.chosen()
        text, places = join(document, [candidates.chunks[n] for n in chosen])
        prompt = template.encode_document(text, self.limits)
        query = template.encode_query(work.query, self.limits, tail=prompt.tail)
        aim: list[tuple[int, int]] = []
        if work.adapt.on.kind == "evidence":
            ids, offsets = template.locate_tokens(text, self.limits.document_tokens)
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
        )

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
        work, template, evidence = self.work, self.template, self.evidence
        reader = DocumentReader(template=template, limits=self.limits, on_overflow=work.on_overflow)
        if evidence is None and (whole := reader.read_whole(work.document, self.room)):
            query = template.encode_query(work.query, self.limits, tail=whole.tail)
            return Context(prompt=whole, query=query, candidates=None, aim=(), overflow=None)
        own_ids, offsets = reader.locate(work.document, self.room)
        named = named_chunks(evidence, work.document, offsets)
        room, left = self._share(len(own_ids), named)
        reading, prompt, overflow = reader.read(work.document, offsets, room, work.query, named)
        if evidence is None:
            query = template.encode_query(work.query, self.limits, tail=prompt.tail)
            return Context(prompt=prompt, query=query, candidates=None, aim=(), overflow=overflow)
        longest = room if overflow is None else max(room // PASSAGES, 1)
        found = find_candidates(work.document, work.query, evidence, offsets, reading, longest)
        repeated = self._repeated(found, reading, left)
        query = template.encode_query(work.query, self.limits, tail=prompt.tail, passages=repeated)
        check = None
        if work.context == "best" and repeated:
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
        )

    def _check(self, prompt: DocumentPrompt, evidence: str) -> EvidenceCheck:
        template, query, limits = self.template, self.work.query, self.limits
        alone = template.encode_document(evidence, limits)
        return EvidenceCheck(
            query=template.encode_query(query, limits, tail=prompt.tail),
            prompt=alone,
            query_after_evidence=template.encode_query(query, limits, tail=alone.tail),
        )

    @property
    def _repeats(self) -> bool:
        """Whether evidence is read again before the query."""
        return self.work.context in ("document+passages", "best")

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
        if tokens <= self.room:
            return self.room, self.free - tokens
        if isinstance(self.evidence, EvidenceByWords):
            wanted = self.evidence.count * (self.evidence.tokens + SEPARATOR_TOKENS)
        else:
            wanted = sum(chunk.end - chunk.start + SEPARATOR_TOKENS for chunk in named)
        repeated = min(wanted, self.free // REPEATED_SHARE)
        return min(self.limits.document_tokens, self.free - repeated), repeated

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
            ids, offsets = self.template.locate_tokens(reading.text, self.limits.sent_tokens)
            ends = ((chunk.first, chunk.last) for chunk in candidates.chunks)
            places = [tokens_of((reading.place(a), reading.place(b)), offsets) for a, b in ends]
            to_prompt = align(ids, prompt.document)
        chunks = tuple(
            replace(chunk, start=to_prompt(start), end=to_prompt(end))
            for chunk, (start, end) in zip(candidates.chunks, places, strict=True)
        )
        return replace(candidates, chunks=chunks)


def _tokens(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.end - chunk.start for chunk in chunks)


def _nonempty(places: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Drop places without a token: what the prompt's document leaves to its tail."""
    return tuple((start, end) for start, end in places if start < end)


def align(own: Sequence[int], other: Sequence[int]) -> Callable[[int], int]:
    """Map places between tokens of one encoding of a text to places of another.

    The encodings differ at their ends at most, where the other has a prompt's text around it, and
    where control tokens are spelled out. Between what they begin and end with in common a place is
    mapped in proportion.

    Args:
        own, other: the token ids.
    """
    shorter = min(len(own), len(other))
    head = next((n for n in range(shorter) if own[n] != other[n]), shorter)
    left = shorter - head
    tail = next((n for n in range(left) if own[-1 - n] != other[-1 - n]), left)
    between, others = len(own) - head - tail, len(other) - head - tail

    def place(at: int) -> int:
        if at <= head:
            return at
        if at >= len(own) - tail:
            return len(other) - (len(own) - at)
        return head + (at - head) * others // between

    return place
