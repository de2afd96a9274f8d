"""What the model reads of a document before a query: all of it, its evidence, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.chunks import Chunk, Offsets, cut
from refine_server.ttt.evidence.lexical import score_by_words
from refine_server.ttt.evidence.passages import join
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    DocumentSpan,
    Evidence,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.reports import Citation
from refine_server.ttt.interface.requests import AnswerRequest, Limits

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


def encode_context(work: AnswerRequest, template: PromptTemplate, limits: Limits) -> Context:
    """Encode what the model reads for a request.

    Raises:
        RequestError: a text is empty or too long, or the evidence cannot be found as asked.
    """
    evidence = work.evidence
    needed = work.context != "document" or work.adapt.on.kind == "evidence"
    if evidence is None and needed:
        evidence = EvidenceByWords()
    if evidence is None:
        prompt = template.encode_document(work.document, limits)
        query = template.encode_query(work.query, limits, tail=prompt.tail)
        return Context(prompt=prompt, query=query, candidates=None, aim=())
    own_ids, offsets = template.locate_tokens(work.document, limits)
    candidates = _candidates(work, evidence, offsets)
    if work.context != "document" and evidence.by in ("attention", "utility"):
        message = f"evidence.by: {evidence.by} needs the context to be document"
        raise RequestError(message, "evidence.by", "invalid_value")
    if work.context == "passages":
        return _encode_passages(work, template, limits, candidates)
    return _encode_document(work, template, limits, candidates, own_ids)


def _encode_passages(
    work: AnswerRequest, template: PromptTemplate, limits: Limits, candidates: Candidates
) -> Context:
    """Encode the evidence in place of the document."""
    chosen = candidates.chosen()
    text, places = join(work.document, [candidates.chunks[n] for n in chosen])
    prompt = template.encode_document(text, limits)
    query = template.encode_query(work.query, limits, tail=prompt.tail)
    aim: list[tuple[int, int]] = []
    if work.adapt.on.kind == "evidence":
        ids, offsets = template.locate_tokens(text, limits)
        to_prompt, best = align(ids, prompt.document), candidates.best()
        spans = [_tokens_of(places[chosen.index(n)], offsets) for n in best]
        aim = [(to_prompt(start), to_prompt(end)) for start, end in spans]
    return Context(prompt=prompt, query=query, candidates=candidates, aim=_nonempty(aim))


def _encode_document(
    work: AnswerRequest,
    template: PromptTemplate,
    limits: Limits,
    candidates: Candidates,
    own_ids: Sequence[int],
) -> Context:
    """Encode the document, and its evidence before the query if that is to be repeated.

    Args:
        own_ids: the document's tokens, as the candidates count them.
    """
    chosen = candidates.chosen()
    evidence = [candidates.chunks[n] for n in chosen]
    is_part = sum(chunk.end - chunk.start for chunk in evidence) < len(own_ids)
    repeated = ""
    if work.context == "document+passages" and is_part:  # else it was just read
        repeated, _ = join(work.document, evidence)
    prompt = template.encode_document(work.document, limits)
    query = template.encode_query(work.query, limits, tail=prompt.tail, passages=repeated)
    to_prompt = align(own_ids, prompt.document)
    chunks = tuple(
        replace(chunk, start=to_prompt(chunk.start), end=to_prompt(chunk.end))
        for chunk in candidates.chunks
    )
    aim = [(chunks[n].start, chunks[n].end) for n in chosen]
    return Context(
        prompt=prompt,
        query=query,
        candidates=replace(candidates, chunks=chunks),
        aim=_nonempty(aim),
    )


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


def _candidates(work: AnswerRequest, evidence: Evidence, offsets: Offsets) -> Candidates:
    document = work.document
    if isinstance(evidence, EvidenceSpans):
        chunks = [_named(span, n, document, offsets) for n, span in enumerate(evidence.spans)]
        chunks.sort(key=lambda chunk: chunk.start)
        named = tuple(chunks)
        return Candidates(document=document, chunks=named, scores=None, count=len(named))
    chunks = cut(document, offsets, evidence.tokens)
    scores = None
    if isinstance(evidence, EvidenceByWords):
        texts = [document[chunk.first : chunk.last] for chunk in chunks]
        scores = tuple(score_by_words(texts, evidence.query or work.query))
    return Candidates(document=document, chunks=tuple(chunks), scores=scores, count=evidence.count)


def _named(span: DocumentSpan, number: int, document: str, offsets: Offsets) -> Chunk:
    first, last = span.start, span.end
    if not (first < last <= len(document) and document[first:last].strip()):
        message = (
            f"evidence.spans.{number}: {first} to {last} is no text of the document, which has "
            f"{len(document)} characters"
        )
        raise RequestError(message, f"evidence.spans.{number}", "invalid_value")
    start, end = _tokens_of((first, last), offsets)
    return Chunk(start=start, end=end, first=first, last=last)


def _tokens_of(place: tuple[int, int], offsets: Offsets) -> tuple[int, int]:
    """Return the tokens that share a character with a place in their text."""
    first, last = place
    inside = [n for n, (a, b) in enumerate(offsets) if a < last and first < b]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
