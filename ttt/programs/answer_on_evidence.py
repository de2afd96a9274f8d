"""The program that answers from a document's frozen state, adapted on evidence or not."""

import time

from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    BaseAnswered,
    DocumentRead,
    Emit,
    ShouldStop,
)
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.programs.answer import (
    answer_deltas,
    emit_answer,
    new_fast_weights,
)
from refine_server.ttt.programs.best_answer import decode_answer, decode_base, read_alone
from refine_server.ttt.programs.clock import Clock
from refine_server.ttt.programs.encode import EncodedAnswer
from refine_server.ttt.programs.frozen import find_evidence, read_frozen
from refine_server.ttt.programs.trace_run import trace_run
from refine_server.ttt.query_side.adapt import Aim, adapt_queries
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.refine.guard import NO_BETTER_STEP


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
        work: a request that adapts on evidence or not at all, or has an adaptation that was kept.
        emit: receives the events.
        should_stop: asked before every step.
        documents: documents that were read before; None keeps none.

    Raises:
        IsolationError: the kept adaptation belongs to another owner.
    """
    request, clock = work.request, Clock()
    if request.kept is not None:
        request.kept.require_owner(request.owner)
    frozen = await read_frozen(
        model, work.prompt, request.owner, documents, emit, with_entropy=request.adapt.trace
    )
    document, seconds, is_cached = frozen
    clock.lap("prefill")
    emit(DocumentRead(work.tokens, seconds, is_cached=is_cached, overflow=work.overflow))

    base = None
    if request.compare_base:
        base = await decode_base(model, work, document.state)
        clock.lap("other")
        emit(BaseAnswered(base.decoded.text))

    candidates, aim = await find_evidence(document, work.context, request.evidence)
    clock.lap("other")
    tracer = trace_run(
        model, work.prompt, work.characters, emit, questions=[work.query], evidence=aim
    )
    adapts = request.kept is None and request.adapt.objective != "none"
    if request.kept is None:
        began = time.monotonic()
        if adapts:
            emit(AdaptationStarted(request.adapt.optimizer.steps))
        fast, report = await adapt_queries(
            document,
            new_fast_weights(model, request),
            request.adapt,
            [Aim(evidence=aim, question=work.query)],
            on_step=lambda report: emit(AdaptationStep(report)),
            should_stop=should_stop,
            tracer=tracer,
        )
        emit(AdaptationEnded(report, time.monotonic() - began))
        guard = request.adapt.guard
    else:
        # Detached: what is derived from it for this answer ends with the answer.
        fast, report = request.kept.fast_weights.detach(), request.kept.report
        guard = request.kept.guard
    clock.lap("adapt" if adapts else "other")

    fast.require_owner(request.owner)
    deltas = answer_deltas(emit, clock)
    is_guarded = guard == "answer" and not fast.is_base
    alone = await read_alone(document, work, aim) if is_guarded else None
    answer = await decode_answer(model, work, document.state, fast, deltas, alone=alone, base=base)
    clock.lap("decode")
    if answer.is_base and not fast.is_base:
        report = report.unused(NO_BETTER_STEP)
    trace = None if tracer is None else tracer.result
    await emit_answer(emit, answer, report, work, clock, base, candidates, trace)
