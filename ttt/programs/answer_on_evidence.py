"""The program that answers from a document's frozen state, adapted on evidence or not at all."""

import time
from dataclasses import replace

import torch

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decoder import decode
from refine_server.ttt.evidence.candidates import Candidates
from refine_server.ttt.evidence.scoring import score_by_attention, score_by_utility
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStep,
    BaseAnswered,
    DocumentRead,
    Emit,
    ShouldStop,
)
from refine_server.ttt.interface.evidence import EvidenceByAttention
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.programs.answer import (
    answer_deltas,
    emit_answer,
    new_fast_weights,
)
from refine_server.ttt.programs.best_answer import decode_answer
from refine_server.ttt.programs.clock import Clock
from refine_server.ttt.programs.encode import EncodedAnswer
from refine_server.ttt.query_side.adapt import Aim, adapt_queries, supervised_layers
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.query_side.frozen_document import DocumentReader, FrozenDocument
from refine_server.ttt.refine.inputs.rows import Span


async def answer_on_evidence(
    model: CausalLM,
    work: EncodedAnswer,
    emit: Emit,
    should_stop: ShouldStop,
    documents: DocumentCache | None,
) -> None:
    """Read the document once, adapt queries to its evidence, and answer; the copy ends then.

    Args:
        model: the base model.
        work: a request that adapts on evidence, or not at all.
        emit: receives the events.
        should_stop: asked before every step.
        documents: documents that were read before; None keeps none.
    """
    request, clock = work.request, Clock()
    ids = torch.tensor([work.prompt.header + work.prompt.document], device=model.device)  # [1, T]
    document = None if documents is None else documents.get(request.owner, ids)
    is_cached, seconds = document is not None, 0.0
    if document is None:
        reader = DocumentReader(model, ids, len(work.prompt.header))
        while not reader.is_done:
            await Call(reader.read_piece, model.threads)
        document, seconds = reader.document(), reader.seconds
        if documents is not None:
            documents.put(request.owner, document)
    clock.lap("prefill")
    emit(DocumentRead(work.tokens, seconds, is_cached=is_cached, overflow=work.overflow))
    known = work.prompt.document

    base_answer = None
    if request.compare_base:
        base = await decode(
            model, work.query, document.state, BASE, request.sampling, document=known
        )
        base_answer = base.text
        clock.lap("base")
        emit(BaseAnswered(base_answer))

    began = time.monotonic()
    candidates, aim = await _find_evidence(document, work)
    fast, report = await adapt_queries(
        document,
        new_fast_weights(model, request),
        request.adapt,
        Aim(evidence=aim, question=work.query),
        on_step=lambda report: emit(AdaptationStep(report)),
        should_stop=should_stop,
    )
    emit(AdaptationEnded(report, time.monotonic() - began))
    clock.lap("adapt")

    fast.require_owner(request.owner)
    deltas = answer_deltas(emit, clock)
    decoded, read = await decode_answer(model, work, document.state, fast, deltas)
    clock.lap("decode")
    await emit_answer(emit, decoded, report, work, clock, base_answer, candidates, read)


async def _find_evidence(
    document: FrozenDocument, work: EncodedAnswer
) -> tuple[Candidates | None, list[Span]]:
    """Return what can be evidence, scored, and the spans that an adaptation is aimed at.

    Both are empty where the request looks for no evidence.

    Spans are counted in the document's ``input_ids``.
    """
    context, offset = work.context, document.context_tokens
    candidates, aim = context.candidates, context.aim
    if candidates is not None and work.needs_model_for_evidence:
        unscored = candidates
        call = Call(lambda: _scored(document, work, unscored), document.model.threads)
        candidates = await call
        chosen = (candidates.chunks[n] for n in candidates.chosen())
        aim = tuple((chunk.start, chunk.end) for chunk in chosen)
    return candidates, [Span(offset + start, offset + end) for start, end in aim]


def _scored(document: FrozenDocument, work: EncodedAnswer, candidates: Candidates) -> Candidates:
    """Score the candidates by the unadapted model."""
    chunks = candidates.chunks
    if isinstance(work.request.evidence, EvidenceByAttention):
        [layer] = supervised_layers(document.model.attention_layers)
        scores = score_by_attention(document, work.query, chunks, layer)
    else:
        passages = [work.prompt.document[chunk.start : chunk.end] for chunk in chunks]
        scores = score_by_utility(document.model, work.prompt.header, work.query, passages)
    return replace(candidates, scores=tuple(scores))
