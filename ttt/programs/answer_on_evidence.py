"""The program that answers from a document's frozen state, adapted on evidence or not."""

import time

from refine_server.ttt.decoding.decoder import decode
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.events import (
    AdaptationEnded,
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
from refine_server.ttt.programs.best_answer import decode_answer
from refine_server.ttt.programs.clock import Clock
from refine_server.ttt.programs.encode import EncodedAnswer
from refine_server.ttt.programs.frozen import find_evidence, read_frozen
from refine_server.ttt.query_side.adapt import Aim, adapt_queries
from refine_server.ttt.query_side.document_cache import DocumentCache


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
    frozen = await read_frozen(model, work.prompt, request.owner, documents)
    document, seconds, is_cached = frozen
    clock.lap("prefill")
    emit(DocumentRead(work.tokens, seconds, is_cached=is_cached, overflow=work.overflow))
    known = work.prompt.document

    base_answer = None
    if request.compare_base:
        base = await decode(
            model,
            work.query,
            document.state,
            BASE,
            request.sampling,
            document=known,
            grammar=work.grammar,
        )
        base_answer = base.text
        clock.lap("base")
        emit(BaseAnswered(base_answer))

    candidates, aim = await find_evidence(document, work.context, request.evidence)
    if request.kept is None:
        began = time.monotonic()
        fast, report = await adapt_queries(
            document,
            new_fast_weights(model, request),
            request.adapt,
            [Aim(evidence=aim, question=work.query)],
            on_step=lambda report: emit(AdaptationStep(report)),
            should_stop=should_stop,
        )
        emit(AdaptationEnded(report, time.monotonic() - began))
    else:
        # Detached: what is derived from it for this answer ends with the answer.
        fast, report = request.kept.fast_weights.detach(), request.kept.report
    clock.lap("adapt")

    fast.require_owner(request.owner)
    deltas = answer_deltas(emit, clock)
    decoded, read = await decode_answer(model, work, document.state, fast, deltas)
    clock.lap("decode")
    await emit_answer(emit, decoded, report, work, clock, base_answer, candidates, read)
