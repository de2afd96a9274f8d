"""What the model reads of a document before a query: all of it, its evidence, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.candidates import Candidates, named_chunks, tokens_of
from refine_server.ttt.evidence.chunks import Chunk, Offsets, cut
from refine_server.ttt.evidence.lexical import score_by_words
from refine_server.ttt.evidence.passages import join
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    ContextStrategy,
    Evidence,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.requests import Limits

EncodeQuery = Callable[[str, str], list[int]]
"""Encodes what follows a document: given its tail, and passages that stand before the query."""


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


class ContextEncoder:
    """Encodes what is read of one document before any number of queries.

    Args:
        document: the text.
        strategy: what is read of it.
        evidence: how evidence is found; None: by words if the strategy or an adaptation needs it.
        template: the prompt's text around document and query, and the tokenizer.
        limits: the longest texts that are accepted, in tokens.
        is_aimed: whether an adaptation is aimed at the evidence.
    """

    def __init__(
        self,
        document: str,
        strategy: ContextStrategy,
        evidence: Evidence | None,
        template: PromptTemplate,
        limits: Limits,
        *,
        is_aimed: bool,
    ) -> None:
        if evidence is None and (strategy != "document" or is_aimed):
            evidence = EvidenceByWords()
        self._document, self._strategy, self._evidence = document, strategy, evidence
        self._template, self._limits, self._is_aimed = template, limits, is_aimed

    def encode(self, query: str, encode_query: EncodeQuery) -> Context:
        """Encode what is read for a query.

        Args:
            query: the words to search by.
            encode_query: encodes the query.

        Raises:
            RequestError: a text is empty or too long, or the evidence cannot be found as asked.
        """
        evidence = self._evidence
        if evidence is None:
            ids = encode_query(self._prompt.tail, "")
            return Context(prompt=self._prompt, query=ids, candidates=None, aim=())
        candidates = self._candidates(query, evidence)
        if self._strategy != "document" and evidence.by in ("attention", "utility"):
            message = f"evidence.by: {evidence.by} needs the context to be document"
            raise RequestError(message, "evidence.by", "invalid_value")
        if self._strategy == "passages":
            return self._encode_passages(candidates, encode_query)
        return self._encode_document(candidates, encode_query)

    @cached_property
    def _prompt(self) -> DocumentPrompt:
        return self._template.encode_document(self._document, self._limits)

    @cached_property
    def _own_tokens(self) -> tuple[list[int], Offsets]:
        """The document's tokens by itself, as candidates count them, and their characters."""
        return self._template.locate_tokens(self._document, self._limits)

    @cached_property
    def _chunks(self) -> tuple[Chunk, ...]:
        """What can be evidence."""
        evidence, (_, offsets) = self._evidence, self._own_tokens
        assert evidence is not None
        if isinstance(evidence, EvidenceSpans):
            return tuple(named_chunks(evidence.spans, self._document, offsets))
        return tuple(cut(self._document, offsets, evidence.tokens))

    def _candidates(self, query: str, evidence: Evidence) -> Candidates:
        document, chunks, scores = self._document, self._chunks, None
        if isinstance(evidence, EvidenceByWords):
            texts = [document[chunk.first : chunk.last] for chunk in chunks]
            scores = tuple(score_by_words(texts, evidence.query or query))
        count = len(chunks) if isinstance(evidence, EvidenceSpans) else evidence.count
        return Candidates(document=document, chunks=chunks, scores=scores, count=count)

    def _encode_passages(self, candidates: Candidates, encode_query: EncodeQuery) -> Context:
        """Encode the evidence in place of the document."""
        chosen = candidates.chosen()
        text, places = join(self._document, [candidates.chunks[n] for n in chosen])
        prompt = self._template.encode_document(text, self._limits)
        query = encode_query(prompt.tail, "")
        aim: list[tuple[int, int]] = []
        if self._is_aimed:
            ids, offsets = self._template.locate_tokens(text, self._limits)
            to_prompt, best = align(ids, prompt.document), candidates.best()
            spans = [tokens_of(places[chosen.index(n)], offsets) for n in best]
            aim = [(to_prompt(start), to_prompt(end)) for start, end in spans]
        return Context(prompt=prompt, query=query, candidates=candidates, aim=_nonempty(aim))

    def _encode_document(self, candidates: Candidates, encode_query: EncodeQuery) -> Context:
        """Encode the document, and its evidence before the query if that is to be repeated."""
        own_ids, _ = self._own_tokens
        chosen = candidates.chosen()
        evidence = [candidates.chunks[n] for n in chosen]
        is_part = sum(chunk.end - chunk.start for chunk in evidence) < len(own_ids)
        repeated = ""
        if self._strategy == "document+passages" and is_part:  # else it was just read
            repeated, _ = join(self._document, evidence)
        prompt = self._prompt
        query = encode_query(prompt.tail, repeated)
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
