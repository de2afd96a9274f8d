"""Adaptations that are kept, with their documents and the queries that they expect as token ids."""

from collections.abc import Iterator
from dataclasses import dataclass

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.context import Context, ContextEncoder, Query
from refine_server.ttt.evidence.reading import DocumentReader, Reading
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    EvidenceByAttention,
    EvidenceByUtility,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.reports import Overflow
from refine_server.ttt.interface.requests import AdaptRequest, Limits
from refine_server.ttt.tracing.characters import Characters, locate_characters

MAX_SPANS = 64
"""The most chunks that an adaptation is aimed at: each is a row of every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAdapt:
    """An ``AdaptRequest`` whose document gets a state of its own, and its token ids."""

    request: AdaptRequest
    prompt: DocumentPrompt
    query: list[int] | None
    characters: Characters | None = None
    """Of the document's tokens; None where no trace is asked for."""
    overflow: Overflow | None = None
    """How the document was shortened, if it was."""

    @property
    def tokens(self) -> int:
        """Tokens of what is read of the document."""
        return len(self.prompt.document)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedQueryAdapt:
    """An ``AdaptRequest`` on evidence, over the document's frozen state, and its token ids."""

    request: AdaptRequest
    contexts: tuple[Context, ...]
    """The evidence for each query; one without a query where only the evidence is known."""
    room: int
    """The most tokens that are read of the document, for this and all later queries."""
    characters: Characters | None = None
    """Of the document's tokens; None where no trace is asked for."""

    @property
    def overflow(self) -> Overflow | None:
        """How the document was shortened, if it was."""
        return self.contexts[0].overflow

    @property
    def prompt(self) -> DocumentPrompt:
        """What is read first."""
        return self.contexts[0].prompt

    @property
    def tokens(self) -> int:
        """Tokens of what is read of the document."""
        return len(self.prompt.document)


def encode_adaptation(
    work: AdaptRequest, template: PromptTemplate, limits: Limits
) -> EncodedAdapt | EncodedQueryAdapt:
    """Encode a document and the queries that an adaptation to it expects.

    Raises:
        RequestError: a text is empty or too long, there is no query where one is needed, or the
            evidence cannot be found as asked.
    """
    kind = work.adapt.on.kind
    if kind == "evidence":
        _check_aim(work)
        room = _count_room(work, template, limits)
        contexts = tuple(_contexts(work, template, limits, room))
        characters = _characters(work, contexts[0].reading, contexts[0].prompt, template, limits)
        return EncodedQueryAdapt(request=work, contexts=contexts, room=room, characters=characters)
    if work.evidence is not None:
        raise _unfit("evidence", "needs adapt.on.kind to be evidence")
    if len(work.queries) != 1 and kind in ("query_spans", "prompt"):
        raise _unfit("adapt.on.kind", f"{kind} requires a query, and no more than one")
    if len(work.queries) > 1:
        raise _unfit("queries", "more than one needs adapt.on.kind to be evidence")
    return _encode_document(work, template, limits)


def _count_room(work: AdaptRequest, template: PromptTemplate, limits: Limits) -> int:
    """Return the room of a document beside the queries to come and their answers, in tokens."""
    if limits.context_length is None:
        return limits.document_tokens
    known = max((len(template.encode_query(q, limits)) for q in work.queries), default=0)
    kept_free = max(known, min(limits.query_tokens, limits.context_length // 4))
    left = limits.context_length - template.header_tokens - kept_free
    return min(limits.document_tokens, max(left, 0))


def _encode_document(work: AdaptRequest, template: PromptTemplate, limits: Limits) -> EncodedAdapt:
    """Encode a document that gets a state of its own, and the query if one is known."""
    room, [asked] = _count_room(work, template, limits), work.queries or (None,)
    reader = DocumentReader(template=template, limits=limits, on_overflow=work.on_overflow)
    prompt, overflow, reading = reader.read_whole(work.document, room), None, None
    if prompt is None:
        _, offsets = reader.locate(work.document, room)
        reading, prompt, overflow = reader.read(work.document, offsets, room, asked)
    query = None
    if asked is not None:
        query = template.encode_query(asked, limits, tail=prompt.tail)
    characters = _characters(work, reading, prompt, template, limits)
    return EncodedAdapt(
        request=work, prompt=prompt, query=query, characters=characters, overflow=overflow
    )


def _characters(
    work: AdaptRequest,
    reading: Reading | None,
    prompt: DocumentPrompt,
    template: PromptTemplate,
    limits: Limits,
) -> Characters | None:
    """Find the characters of the document's tokens, where a trace is asked for."""
    if not work.adapt.trace:
        return None
    return locate_characters(work.document, reading, prompt, template, limits)


def _contexts(
    work: AdaptRequest, template: PromptTemplate, limits: Limits, room: int
) -> Iterator[Context]:
    """Encode the document with the evidence for each query."""
    encoder = ContextEncoder(
        document=work.document,
        pages=work.pages,
        strategy="document",
        evidence=work.evidence,
        on_overflow=work.on_overflow,
        template=template,
        limits=limits,
        is_aimed=work.adapt.objective != "none",
        room=room,
    )
    if not work.queries:
        yield encoder.encode(Query(words="", encode=lambda tail, passages: [], max_tokens=0))
    for number, text in enumerate(work.queries):

        def encode_query(tail: str, passages: str, text: str = text) -> list[int]:
            return template.encode_query(text, limits, tail=tail, passages=passages)

        try:
            yield encoder.encode(Query(words=text, encode=encode_query, max_tokens=0))
        except RequestError as error:
            if error.param != "query":
                raise
            raise RequestError(str(error), f"queries.{number}", error.code) from None


def _check_aim(work: AdaptRequest) -> None:
    """Raise RequestError if an adaptation on evidence does not know what it is aimed at."""
    evidence, adapt = work.evidence, work.adapt
    if work.on_overflow == "passages":
        raise _unfit("on_overflow", "passages are those of one query; this is for any number")
    if not work.queries:
        if isinstance(evidence, EvidenceByAttention | EvidenceByUtility):
            raise _unfit("queries", f"evidence by {evidence.by} requires at least one")
        if adapt.objective == "none":
            return
        if adapt.loss.attention:
            raise _unfit("queries", "adapt.loss.attention requires at least one")
        if not (isinstance(evidence, EvidenceSpans) or _words(evidence)):
            reason = (
                "adapting on evidence, as the presets fast and balanced do, requires queries, or "
                "evidence.spans; the preset thorough adapts without"
            )
            raise _unfit("queries", reason)
    if isinstance(evidence, EvidenceSpans):
        return
    chunks = (evidence or EvidenceByWords()).count * len(work.queries)
    if chunks > MAX_SPANS:
        reason = f"with evidence.count they ask for {chunks} chunks; at most {MAX_SPANS} are used"
        raise _unfit("queries", reason)


def _words(evidence: object) -> str | None:
    """Return the words that evidence is searched by, where it says so itself."""
    return evidence.words if isinstance(evidence, EvidenceByWords) else None


def _unfit(param: str, reason: str) -> RequestError:
    return RequestError(f"{param}: {reason}", param, "invalid_value")
