"""One adaptation: the program of its steps, the choice of the weights, and the report.

Each step is a REFINE step (``loss``, arXiv 2602.16704). The program makes steps until it has made
all of them, until the held-out guard sees no improvement, or until the caller stops it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from refine_server.ttt.batching import LongCall
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig, OnQuerySpans, OnSpans
from refine_server.ttt.interface.events import ShouldStop, never_stop
from refine_server.ttt.interface.reports import AdaptationReport, StepReport
from refine_server.ttt.interface.requests import LOCAL
from refine_server.ttt.models.state import compact
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.pieces import Pieces
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.held_out import HeldOutEvaluator, held_out_spans
from refine_server.ttt.refine.inputs.row_batch import RowBatch
from refine_server.ttt.refine.inputs.rows import Prefix, Rows, Span
from refine_server.ttt.refine.inputs.spans import (
    QueryContext,
    answer_rows,
    choose_spans,
    prompt_rows,
    span_rows,
)
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.optimizer import FastWeightOptimizer
from refine_server.ttt.refine.step import (
    AdaptationRun,
    AdaptStep,
    NoImprovement,
    StepAbandoned,
    StepDone,
    StepRejected,
)
from refine_server.ttt.refine.time_limit import TimeLimit
from refine_server.ttt.tracing.run import RunTracer


async def adapt(
    document: Rows,
    fast: FastWeights,
    config: AdaptConfig,
    *,
    owner: str = LOCAL,
    query: QueryContext | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    should_stop: ShouldStop = never_stop,
    tracer: RunTracer | None = None,
) -> AdaptedDocument:
    """Adapt ``fast`` to a document in place and return the adapted document.

    With a guard the answer comes from the step that did best on the held-out spans, and no step is
    made after several that did no better; without one it comes from the last step. The program may
    be closed between steps: nothing outside ``fast`` was changed.

    Args:
        document: one row, the prompt up to the document's end; its model's base weights are not
            written.
        fast: the request's own copy of the fast weights.
        config: the settings of the adaptation.
        owner: who alone may use the adapted document.
        query: the query that is adapted on, or by which spans are chosen; None if there is none.
        on_step: called with the report of every step that was made.
        should_stop: asked before every step, and between the pieces of one.
        tracer: traces the document and the steps, where that is asked for.
    """
    threads = document.model.threads

    async def unadapted(
        reason: str | None = None,
        steps: Sequence[StepReport] = (),
        stopped: str | None = None,
    ) -> AdaptedDocument:
        if tracer is not None and tracer.result is None:
            await tracer.before()
        call = LongCall(
            lambda: _unadapted(document, config, owner, reason, steps, stopped), threads
        )
        return await call

    if config.objective == "none":
        return await unadapted()
    if document.num_targets < 2 * config.rollouts.tokens:
        return await unadapted(guard.DOCUMENT_TOO_SHORT)
    run = await LongCall(lambda: prepare(document, fast, config, query), threads)
    if isinstance(run, str):
        return await unadapted(run)
    if tracer is not None:
        await tracer.before(spans=run.spans, held_out=document.held_out)
        tracer_of_steps = tracer.steps(run.inputs.rollout_rows, fast, config.optimizer.steps)
        run = replace(run, tracer=tracer_of_steps)

    steps, stopped = await make_steps(run, on_step, should_stop)
    if isinstance(stopped, StepRejected):
        return await unadapted(stopped.reason, [*steps, stopped.report])
    if not steps:
        return await unadapted(stopped, stopped=stopped)
    call = LongCall(lambda: finish(run, owner, steps, stopped), threads)
    adapted = await call
    if tracer is not None and adapted.report.adapted:
        await tracer.after(adapted.fast_weights, adapted.report.accepted_step)
    return adapted


async def make_steps(
    run: AdaptationRun,
    on_step: Callable[[StepReport], None],
    should_stop: ShouldStop,
) -> tuple[list[StepReport], StepRejected | str | None]:
    """Make the steps of an adaptation, until one is rejected or there is a reason to stop.

    A step is expected to take as long as the longest one before it. One that turns out to take too
    long is left where it is.

    Args:
        run: the adaptation.
        on_step: called with the report of every step that was made.
        should_stop: asked before every step, and between the pieces of one.

    Returns:
        The reports of the steps that were made, and why there are no more: the rejected step, a
        reason, or None if all were made.
    """
    settings = run.config.optimizer
    limit = TimeLimit(settings.max_seconds, should_stop, reads_again=run.reads_again)
    steps: list[StepReport] = []
    longest = 0.0
    while len(steps) < settings.steps:
        if (stopped := limit.reason(longest)) is not None:
            return steps, stopped
        began = time.monotonic()
        match await AdaptStep(run, len(steps) + 1, limit):
            case NoImprovement():
                return steps, guard.NO_IMPROVEMENT
            case StepAbandoned(reason):
                run.optimizer.zero_grad()
                return steps, reason
            case StepRejected() as rejected:
                return steps, rejected
            case StepDone(report):
                longest = max(longest, time.monotonic() - began)
                steps.append(report)
                on_step(report)
    return steps, None


def prepare(
    document: Rows, fast: FastWeights, config: AdaptConfig, query: QueryContext | None = None
) -> Pieces[AdaptationRun | str]:
    """Choose what the steps of an adaptation read, and hold spans of the document out of it.

    Returns:
        What the steps share, or the reason why none can be made.
    """
    generator = torch.Generator().manual_seed(config.seed)
    fast.requires_grad_()
    optimizer = FastWeightOptimizer(config, fast)
    on = config.on
    spans = yield from choose_spans(document, config, generator, query)
    if isinstance(on, OnSpans | OnQuerySpans) and not spans:
        return guard.NOTHING_SIMILAR
    evaluator = None
    if config.guard == "held_out":
        places = torch.Generator().manual_seed(config.seed)
        document.held_out = held_out_spans(document, spans, config.rollouts.tokens, places)
        if not document.held_out:
            return guard.DOCUMENT_TOO_SHORT
        evaluator = HeldOutEvaluator(document, fast, config.optimizer.steps)
    rows = _adapted_rows(document, spans, fast, config, query)
    yield from rows.read_frozen()
    ntp_on_document = isinstance(on, OnSpans | OnQuerySpans) and on.ntp_on == "document"
    inputs = StepInputs(
        ntp_rows=document if ntp_on_document else rows,
        rollout_rows=rows,
        fast=fast,
        config=config,
        generator=generator,
    )
    return AdaptationRun(
        document=document, inputs=inputs, optimizer=optimizer, evaluator=evaluator, spans=spans
    )


def _adapted_rows(
    document: Rows,
    spans: Sequence[Span],
    fast: FastWeights,
    config: AdaptConfig,
    query: QueryContext | None,
) -> Rows:
    """Make the rows that rollouts start in: document, prompt, spans, or an answer made of them."""
    on = config.on
    if on.kind == "prompt":
        return prompt_rows(document, fast, query)
    if not spans:
        return document
    if on.kind != "query_spans" or on.learn_as == "text" or query is None:
        return span_rows(document, spans, fast)
    return answer_rows(document, spans, fast, query, on.learn_as == "answer_in_context")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenWeights:
    """The weights that queries of an adapted document are answered with."""

    fast: FastWeights
    """The adapted weights, or the base weights."""
    step: int
    """The step that made them; 0 for the base weights."""
    reason: str | None
    """Why they are the base weights; None for adapted ones."""
    ntp_losses: Sequence[float]
    """The next-token losses before each step and, if it was computed, after the last one."""
    end: Prefix | None
    """The document read under them, if that was done already."""


@torch.no_grad()
def choose_weights(
    run: AdaptationRun, steps: Sequence[StepReport], stopped: str | None
) -> Pieces[ChosenWeights]:
    """Choose the weights of the best step, of the last one without a guard, or the base weights.

    Args:
        run: the adaptation; its weights become the chosen ones, in place.
        steps: the steps that were made, at least one.
        stopped: why there are no more, or None if all were made.
    """
    evaluator, step = run.evaluator, len(steps)
    losses = [report.ntp_loss for report in steps]
    end = None
    reason = guard.check_weights(run.fast)
    if reason is None and stopped != guard.NO_IMPROVEMENT:  # nothing was read under them so far
        forward = yield from RowBatch([run.inputs.ntp_rows]).forward(run.fast, Graph())
        yield
        yield from forward.read_token_stats(Graph())
        [trunk] = forward.requests()
        losses.append(float(trunk.token_stats.ntp_loss))
        reason = guard.check_loss(losses[-1])
        if run.reads_document:
            end = trunk.end()
        if reason is None and evaluator is not None:
            yield
            yield from evaluator.evaluate(step, trunk if run.reads_document else None)
    if reason is None and evaluator is not None:
        step = evaluator.restore_best()
        reason = None if step else guard.NO_BETTER_STEP
    if reason is not None:
        return ChosenWeights(fast=BASE, step=0, reason=reason, ntp_losses=losses, end=None)
    end = end if step == len(steps) else None
    return ChosenWeights(fast=run.fast, step=step, reason=None, ntp_losses=losses, end=end)


def final_report(
    run: AdaptationRun, steps: Sequence[StepReport], stopped: str | None, chosen: ChosenWeights
) -> AdaptationReport:
    """Report how an adaptation with at least one step ended."""
    return AdaptationReport(
        objective=run.config.objective,
        steps=tuple(steps),
        accepted_step=chosen.step,
        kept_base_reason=chosen.reason,
        stopped=stopped,
        first_ntp_loss=chosen.ntp_losses[0],
        final_ntp_loss=chosen.ntp_losses[chosen.step],
        fast_weight_bytes=chosen.fast.nbytes,
        held_out=tuple(run.evaluator.results) if run.evaluator is not None else (),
    )


def finish(
    run: AdaptationRun, owner: str, steps: Sequence[StepReport], stopped: str | None
) -> Pieces[AdaptedDocument]:
    """Choose the weights, and read the document under them where that was not done already."""
    chosen = yield from choose_weights(run, steps, stopped)
    end = chosen.end
    if end is None:
        yield
        end = yield from run.document.end(chosen.fast)
    report = final_report(run, steps, stopped, chosen)
    return _adapted_document(run.document, chosen.fast, end, owner, report)


def _unadapted(
    document: Rows,
    config: AdaptConfig,
    owner: str,
    reason: str | None,
    steps: Sequence[StepReport],
    stopped: str | None,
) -> Pieces[AdaptedDocument]:
    """Read the document under the base weights, whatever steps were made."""
    report = AdaptationReport(
        objective=config.objective,
        steps=tuple(steps),
        accepted_step=0,
        kept_base_reason=reason,
        stopped=stopped,
        first_ntp_loss=steps[0].ntp_loss if steps else None,
        final_ntp_loss=None,
        fast_weight_bytes=0,
    )
    end = yield from document.end(BASE)
    return _adapted_document(document, BASE, end, owner, report)


def _adapted_document(
    document: Rows, fast: FastWeights, end: Prefix, owner: str, report: AdaptationReport
) -> AdaptedDocument:
    """Assemble what queries need; its tensors are copies that keep nothing else in memory."""
    return AdaptedDocument(
        owner=owner,
        fast_weights=fast.detach(),
        state=compact(end.state),
        hidden=compact(end.hidden),
        report=report,
        document_tokens=document.input_ids.shape[1] - document.context_tokens,
    )
