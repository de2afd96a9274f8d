"""The program that adapts queries to a document on evidence, and keeps the result."""

import time

from refine_server.ttt.evidence.candidates import Candidates
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    DocumentAdapted,
    DocumentRead,
    Emit,
    ShouldStop,
)
from refine_server.ttt.interface.reports import Citation
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.programs.answer import new_fast_weights
from refine_server.ttt.programs.encode_adaptation import EncodedQueryAdapt
from refine_server.ttt.programs.frozen import find_evidence, read_frozen
from refine_server.ttt.programs.trace_run import trace_run
from refine_server.ttt.query_side.adapt import Aim, adapt_queries
from refine_server.ttt.query_side.document_cache import DocumentCache, document_key
from refine_server.ttt.query_side.query_adaptation import QueryAdaptation, rounded


async def adapt_on_evidence(
    model: CausalLM,
    work: EncodedQueryAdapt,
    emit: Emit,
    should_stop: ShouldStop,
    documents: DocumentCache | None,
) -> None:
    """Read a document once and adapt queries to its evidence; the last event has the result.

    Args:
        model: the base model.
        work: the document, and the queries that are expected.
        emit: receives the events.
        should_stop: asked after every step.
        documents: documents that were read before; None keeps none.
    """
    request = work.request
    frozen = await read_frozen(
        model, work.prompt, request.owner, documents, emit, with_entropy=request.adapt.trace
    )
    document, seconds, is_cached = frozen
    key = document_key(document.input_ids)
    emit(DocumentRead(work.tokens, seconds, is_cached, work.overflow, key))

    began = time.monotonic()
    aims: list[Aim] = []
    found: list[Candidates] = []
    for context in work.contexts:
        candidates, spans = await find_evidence(document, context, request.evidence)
        aims.append(Aim(evidence=spans, question=context.query))
        found += [] if candidates is None else [candidates]
    if request.adapt.objective != "none":
        emit(AdaptationStarted(request.adapt.optimizer.steps))
    tracer = trace_run(
        model,
        work.prompt,
        work.characters,
        emit,
        questions=[aim.question for aim in aims],
        evidence=[span for aim in aims for span in aim.evidence],
    )
    fast, report = await adapt_queries(
        document,
        new_fast_weights(model, request),
        request.adapt,
        aims,
        on_step=lambda report: emit(AdaptationStep(report)),
        should_stop=should_stop,
        tracer=tracer,
    )
    emit(AdaptationEnded(report, time.monotonic() - began))
    kept = QueryAdaptation(
        owner=request.owner,
        document=request.document,
        pages=request.pages,
        fast_weights=rounded(fast),
        report=report.without_traces(),
        document_tokens=work.tokens,
        room=work.room,
        overflow=work.overflow,
        document_key=key,
        guard=request.adapt.guard,
        citations=_cited(found),
    )
    emit(DocumentAdapted(kept))


def _cited(found: list[Candidates]) -> tuple[Citation, ...]:
    """Cite the evidence for all queries, each part of the document once."""
    best: dict[tuple[int, int], Citation] = {}
    for candidates in found:
        for citation in candidates.citations():
            known = best.setdefault((citation.start, citation.end), citation)
            if (citation.score or 0.0) > (known.score or 0.0):
                best[citation.start, citation.end] = citation
    return tuple(best[place] for place in sorted(best))
