"""Adaptations that are kept, with their documents and the queries that they expect as token ids."""

from collections.abc import Iterator
from dataclasses import dataclass

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.context import Context, ContextEncoder
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    EvidenceByAttention,
    EvidenceByUtility,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.requests import AdaptRequest, Limits

MAX_SPANS = 64
"""The most chunks that an adaptation is aimed at: each is a row of every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAdapt:
    """An ``AdaptRequest`` whose document gets a state of its own, and its token ids."""

    request: AdaptRequest
    prompt: DocumentPrompt
    query: list[int] | None

    @property
    def tokens(self) -> int:
        """Tokens of the document."""
        return len(self.prompt.document)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedQueryAdapt:
    """An ``AdaptRequest`` on evidence, over the document's frozen state, and its token ids."""

    request: AdaptRequest
    contexts: tuple[Context, ...]
    """The evidence for each query; one without a query where only the evidence is known."""

    @property
    def prompt(self) -> DocumentPrompt:
        """What is read first."""
        return self.contexts[0].prompt

    @property
    def tokens(self) -> int:
        """Tokens of the document."""
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
        return EncodedQueryAdapt(request=work, contexts=tuple(_contexts(work, template, limits)))
    if work.evidence is not None:
        raise _unfit("evidence", "needs adapt.on.kind to be evidence")
    if len(work.queries) != 1 and kind in ("query_spans", "prompt"):
        raise _unfit("adapt.on.kind", f"{kind} requires a query, and no more than one")
    if len(work.queries) > 1:
        raise _unfit("queries", "more than one needs adapt.on.kind to be evidence")
    prompt = template.encode_document(work.document, limits)
    query = None
    for text in work.queries:
        query = template.encode_query(text, limits, tail=prompt.tail)
    return EncodedAdapt(request=work, prompt=prompt, query=query)


def _contexts(work: AdaptRequest, template: PromptTemplate, limits: Limits) -> Iterator[Context]:
    """Encode the document with the evidence for each query."""
    is_aimed = work.adapt.objective != "none"
    encoder = ContextEncoder(
        work.document, "document", work.evidence, template, limits, is_aimed=is_aimed
    )
    if not work.queries:
        yield encoder.encode("", lambda tail, passages: [])
    for number, query in enumerate(work.queries):

        def encode_query(tail: str, passages: str, query: str = query) -> list[int]:
            return template.encode_query(query, limits, tail=tail, passages=passages)

        try:
            yield encoder.encode(query, encode_query)
        except RequestError as error:
            if error.param != "query":
                raise
            raise RequestError(str(error), f"queries.{number}", error.code) from None


def _check_aim(work: AdaptRequest) -> None:
    """Raise RequestError if an adaptation on evidence does not know what it is aimed at."""
    evidence, adapt = work.evidence, work.adapt
    if not work.queries:
        if isinstance(evidence, EvidenceByAttention | EvidenceByUtility):
            raise _unfit("queries", f"evidence by {evidence.by} requires at least one")
        if adapt.objective == "none":
            return
        if adapt.loss.attention:
            raise _unfit("queries", "adapt.loss.attention requires at least one")
        if not (isinstance(evidence, EvidenceSpans) or _words(evidence)):
            raise _unfit("queries", "adapting on evidence requires queries, or evidence.spans")
    if isinstance(evidence, EvidenceSpans):
        return
    chunks = (evidence or EvidenceByWords()).count * len(work.queries)
    if chunks > MAX_SPANS:
        reason = f"with evidence.count they ask for {chunks} chunks; at most {MAX_SPANS} are used"
        raise _unfit("queries", reason)


def _words(evidence: object) -> str | None:
    """Return the words that evidence is searched by, where it says so itself."""
    return evidence.query if isinstance(evidence, EvidenceByWords) else None


def _unfit(param: str, reason: str) -> RequestError:
    return RequestError(f"{param}: {reason}", param, "invalid_value")
