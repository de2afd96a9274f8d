"""Programs that adapt to a document and answer from it.

``adapt`` makes an adapted document, ``ask`` answers one question from it, and ``answer`` does both
for one request. The base weights are never written; the fast weights are the request's own copy.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from refine_server.ttt.batching import LongCall
from refine_server.ttt.decoding.decoder import DecodedToken, decode
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.evidence.candidates import Candidates
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
    Emit,
    ShouldStop,
)
from refine_server.ttt.interface.reports import AdaptationReport, Citation, Quote, Usage
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest
from refine_server.ttt.interface.traces import RunTrace
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.pieces import Pieces
from refine_server.ttt.programs.ask_base import answer_unadapted
from refine_server.ttt.programs.best_answer import Answer, decode_answer, decode_base
from refine_server.ttt.programs.clock import Clock
from refine_server.ttt.programs.encode import EncodedAnswer, EncodedAsk
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt
from refine_server.ttt.programs.frozen import quote
from refine_server.ttt.programs.reread import grows_with_document, read_end, without_state
from refine_server.ttt.programs.trace_run import trace_run
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.refine.inputs.rows import Rows, Span
from refine_server.ttt.refine.inputs.spans import QueryContext
from refine_server.ttt.refine.loop import adapt as refine
from refine_server.ttt.tracing.run import RunTracer


async def adapt(
    model: CausalLM,
    work: EncodedAdapt,
    emit: Emit,
    should_stop: ShouldStop,
    documents: DocumentCache | None,
) -> None:
    """Adapt a fresh copy of the fast weights to a document; the last event is DocumentAdapted.

    Args:
        model: the base model.
        work: the document, and how to adapt to it.
        emit: receives the events.
        should_stop: asked before every step.
        documents: keeps the state, where it grows with the document; None leaves it with the
            adaptation.
    """
    request = work.request
    query = None
    if work.query is not None:
        [text] = request.queries
        query = QueryContext(text=text, header=work.prompt.header, query=work.query)
    clock = Clock()
    fast, document = await _prefill(model, work, emit)
    is_reread = documents is not None and grows_with_document(model)
    key = uuid.uuid4().hex if is_reread else None
    ids = document.input_ids
    emit(DocumentRead(work.tokens, clock.lap("prefill"), overflow=work.overflow, key=key))
    questions = [] if work.query is None else [work.query]
    tracer = trace_run(model, work.prompt, work.characters, emit, questions=questions, evidence=())
    adapted = await _adapt(document, fast, work, emit, should_stop, query, tracer)
    adapted = replace(adapted, report=adapted.report.without_traces())
    if key is None:
        emit(DocumentAdapted(adapted))
        return
    kept = without_state(adapted, ids, key)
    del document, adapted  # the state is read again, as it will be when it was dropped
    await read_end(model, kept, documents)
    emit(DocumentAdapted(kept))


async def ask(
    model: CausalLM, work: EncodedAsk, emit: Emit, documents: DocumentCache | None
) -> None:
    """Answer a query from an adapted document, which stays as it is for the next query.

    Args:
        model: the base model.
        work: the query, and what answers it.
        emit: receives the events.
        documents: documents that the base model has read; None keeps none.

    Raises:
        IsolationError: the document belongs to another owner.
    """
    request, adapted = work.request, work.request.adapted
    adapted.require_owner(request.owner)
    clock = Clock()
    end = await read_end(model, adapted, documents)
    clock.lap("prefill")
    base_answer = None
    if request.compare_base:
        base_answer = await answer_unadapted(model, work, emit, documents)
        clock.lap("other")
    decoded = await decode(
        model,
        work.query,
        end.state,
        adapted.fast_weights,
        request.sampling,
        grammar=work.grammar,
        on_token=answer_deltas(emit, clock),
    )
    clock.lap("decode")
    usage = Usage(
        document_tokens=adapted.document_tokens,
        query_tokens=len(work.query),
        completion_tokens=decoded.tokens,
        rollout_tokens=0,
    )
    emit(
        AnswerCompleted(
            answer=decoded.text,
            base_answer=base_answer,
            finish_reason=decoded.finish_reason,
            adaptation=adapted.report,
            usage=usage,
            timings=clock.timings(),
            overflow=adapted.overflow,
        )
    )


async def answer(model: CausalLM, work: EncodedAnswer, emit: Emit, should_stop: ShouldStop) -> None:
    """Adapt to a document for one query, then answer it; the copy ends with the program."""
    request, clock = work.request, Clock()
    fast, document = await _prefill(model, work, emit)
    emit(DocumentRead(work.tokens, clock.lap("prefill"), overflow=work.overflow))

    base = None
    if request.compare_base:
        end = await LongCall(partial(document.end, BASE), model.threads)
        base = await decode_base(model, work, end.state)
        clock.lap("other")
        emit(BaseAnswered(base.decoded.text))

    query = QueryContext(text=request.query, header=work.prompt.header, query=work.query)
    context = len(work.prompt.header)
    evidence = [Span(context + start, context + end) for start, end in work.context.aim]
    tracer = trace_run(
        model, work.prompt, work.characters, emit, questions=[work.query], evidence=evidence
    )
    adapted = await _adapt(document, fast, work, emit, should_stop, query, tracer)
    clock.lap("adapt")
    del document  # its trunk and frozen layers are not needed to answer

    adapted.require_owner(request.owner)
    given = await decode_answer(
        model, work, adapted.state, adapted.fast_weights, answer_deltas(emit, clock)
    )
    clock.lap("decode")
    trace = None if tracer is None else tracer.result
    candidates = work.context.candidates
    await emit_answer(emit, given, adapted.report, work, clock, base, candidates, trace)


async def _prefill(
    model: CausalLM, work: EncodedAdapt | EncodedAnswer, emit: Emit
) -> tuple[FastWeights, Rows]:
    """Make the request's copy of the fast weights and read the layers that it does not change.

    Each piece of the reading is told as the part of the document that it is of all of it.
    """
    request: AdaptRequest | AnswerRequest = work.request
    emit(DocumentReading(0, work.tokens))
    is_base_needed = request.adapt.objective == "none" or (
        isinstance(request, AnswerRequest) and request.compare_base
    )

    def prefill() -> Pieces[tuple[FastWeights, Rows]]:
        fast = new_fast_weights(model, request)
        document = document_rows(model, work.prompt, request, fast)
        below = model.num_layers if is_base_needed or fast.is_base else fast.first_layer or 0
        every = document.input_ids.shape[1] * below  # tokens times layers
        read = 0

        def tell(more: int) -> None:
            nonlocal read
            read += more
            if more and read < every:
                emit(DocumentReading(read * work.tokens // every, work.tokens))

        document.on_read = tell
        if model.prefill_chunk is None:
            yield from document.read_frozen()
        if is_base_needed:
            yield
            yield from document.end(BASE)  # the base model's reading of all layers
        document.on_read = None
        return fast, document

    call = LongCall(prefill, model.threads)
    return await call


def new_fast_weights(model: CausalLM, request: AdaptRequest | AnswerRequest) -> FastWeights:
    """Make the copy that the request will own; the base weights when it does not adapt."""
    config = request.adapt
    if config.objective == "none":
        return BASE
    fast = model.new_fast_weights(
        config.fast_weights.targets, config.fast_weights.rank, config.seed
    )
    return FastWeights(fast.tensors, request.owner)


def document_rows(
    model: CausalLM,
    prompt: DocumentPrompt,
    request: AdaptRequest | AnswerRequest,
    fast: FastWeights,
) -> Rows:
    """Make the row that steps read: the prompt up to the end of the document."""
    ids = torch.tensor([prompt.header + prompt.document], device=model.device)  # [1, T]
    context = len(prompt.header)
    return Rows(
        model, ids, fast, context_tokens=context, positions=request.adapt.rollouts.positions
    )


async def _adapt(
    document: Rows,
    fast: FastWeights,
    work: EncodedAdapt | EncodedAnswer,
    emit: Emit,
    should_stop: ShouldStop,
    query: QueryContext | None,
    tracer: RunTracer | None,
) -> AdaptedDocument:
    began = time.monotonic()
    if work.request.adapt.objective != "none":
        emit(AdaptationStarted(work.request.adapt.optimizer.steps))
    adapted = await refine(
        document,
        fast,
        work.request.adapt,
        owner=work.request.owner,
        query=query,
        on_step=lambda report: emit(AdaptationStep(report)),
        should_stop=should_stop,
        tracer=tracer,
    )
    emit(AdaptationEnded(adapted.report, time.monotonic() - began))
    return replace(
        adapted,
        input_ids=document.input_ids,
        tail=work.prompt.tail,
        overflow=work.overflow,
    )


def answer_deltas(emit: Emit, clock: Clock) -> Callable[[DecodedToken], None]:
    """Return what emits each token of the answer as it is decoded."""

    def on_token(token: DecodedToken) -> None:
        clock.record_token()
        emit(AnswerDelta(token.text))

    return on_token


async def emit_answer(
    emit: Emit,
    answer: Answer,
    report: AdaptationReport,
    work: EncodedAnswer,
    clock: Clock,
    base: Answer | None,
    candidates: Candidates | None,
    trace: RunTrace | None,
) -> None:
    """Emit the last event of an answer, with what the document says of it.

    Args:
        emit: receives the event.
        answer: the answer.
        report: how the adaptation ended.
        work: the request.
        clock: of all phases.
        base: the unadapted model's answer, if it was asked for.
        candidates: the evidence; None where none was looked for.
        trace: the document before and after, if that was asked for.
    """
    decoded = answer.decoded
    citations: tuple[Citation, ...] = ()
    quotes: tuple[Quote, ...] = ()
    base_quotes: tuple[Quote, ...] = ()
    if candidates is not None:
        citations = candidates.citations()
        quotes = await quote(decoded.text, candidates, citations)
        if base is not None:
            base_quotes = await quote(base.decoded.text, candidates, citations)
    made = report if work.request.kept is None else None  # by this request, not by an earlier one
    usage = Usage(
        document_tokens=work.tokens,
        query_tokens=len(work.query),
        completion_tokens=decoded.tokens,
        rollout_tokens=sum(step.rollout_tokens for step in made.steps) if made else 0,
    )
    emit(
        AnswerCompleted(
            answer=decoded.text,
            base_answer=None if base is None else base.decoded.text,
            finish_reason=decoded.finish_reason,
            adaptation=report,
            usage=usage,
            timings=clock.timings(made),
            citations=citations,
            quotes=quotes,
            base_quotes=base_quotes,
            overflow=work.overflow,
            context=answer.read,
            trace=trace,
        )
    )
