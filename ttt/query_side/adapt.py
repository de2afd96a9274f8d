"""One query-side adaptation: the program of its steps, and which weights the answer uses.

The document's state is the base model's before, during and after; only query projections adapt, on
the evidence for the query. So the adapted document is its frozen state and a few hundred kilobytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from refine_server.ttt.batching import Call
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import ShouldStop, never_stop
from refine_server.ttt.interface.reports import AdaptationReport, StepReport
from refine_server.ttt.query_side.attention_target import (
    AttentionTarget,
    AttentionTargets,
    supervised_layers,
)
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.query_side.frozen_spans import FrozenSpans
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.inputs.rows import Span
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loop import make_steps
from refine_server.ttt.refine.optimizer import FastWeightOptimizer
from refine_server.ttt.refine.step import AdaptationRun, StepRejected
from refine_server.ttt.tracing.run import RunTracer

FIRST_TOKEN = 2
"""The lowest token that a span may begin with: one predicts it, and one gives that its state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """What a query-side adaptation is aimed at for one question."""

    evidence: Sequence[Span]
    """Spans of the document, counted in its ``input_ids``."""
    question: Sequence[int]
    """The prompt from the document's end to where the answer begins; empty where evidence is known
    and no question."""


async def adapt_queries(
    document: FrozenDocument,
    fast: FastWeights,
    config: AdaptConfig,
    aims: Sequence[Aim],
    *,
    on_step: Callable[[StepReport], None] = lambda report: None,
    should_stop: ShouldStop = never_stop,
    tracer: RunTracer | None = None,
) -> tuple[FastWeights, AdaptationReport]:
    """Adapt ``fast`` to the evidence of a document, in place.

    Args:
        document: read once under the base weights; it does not change.
        fast: the request's own deltas of query projections.
        config: the settings of the adaptation.
        aims: the evidence for each question. Steps read the evidence of all.
        on_step: called with the report of every step that was made.
        should_stop: asked before every step, and between the pieces of one.
        tracer: traces the document and the steps, where that is asked for.

    Returns:
        The weights to answer with, ``fast`` or the base weights, and the report.

    Raises:
        RequestError: attention is to be turned to evidence that it cannot be turned to.
    """
    evidence = [span for aim in aims for span in aim.evidence]
    spans: Sequence[Span] = ()
    if config.objective != "none":
        spans = equal_spans(evidence, document.input_ids.shape[1], config.rollouts.tokens)
    if tracer is not None:
        await tracer.before(spans=spans, frozen=document)
    if config.objective == "none":
        return BASE, _report(config, [], BASE, None, None)
    if not spans:
        return BASE, _report(config, [], BASE, guard.DOCUMENT_TOO_SHORT, None)
    threads = document.model.threads
    run = await Call(lambda: prepare(document, fast, config, aims, spans), threads)
    if tracer is not None:
        tracer_of_steps = tracer.steps(run.inputs.rollout_rows, fast, config.optimizer.steps)
        run = replace(run, tracer=tracer_of_steps)
    steps, stopped = await make_steps(run, on_step, should_stop)
    if isinstance(stopped, StepRejected):
        return BASE, _report(config, [*steps, stopped.report], BASE, stopped.reason, None)
    reason = guard.check_weights(fast) if steps else stopped
    chosen = fast.detach() if steps and reason is None else BASE
    if tracer is not None and not chosen.is_base:
        await tracer.after_queries(chosen, len(steps), document, run.inputs.rollout_rows)
    return chosen, _report(config, steps, chosen, reason, stopped)


def prepare(
    document: FrozenDocument,
    fast: FastWeights,
    config: AdaptConfig,
    aims: Sequence[Aim],
    spans: Sequence[Span],
) -> AdaptationRun:
    """Make what the steps of an adaptation share."""
    fast.requires_grad_()
    positions = max(1, config.rollouts.positions // len(spans))
    rows = FrozenSpans(document, spans, fast, positions=positions)
    inputs = StepInputs(
        ntp_rows=rows,
        rollout_rows=rows,
        fast=fast,
        config=config,
        generator=torch.Generator().manual_seed(config.seed),
        attention=_target(document, config, aims),
    )
    optimizer = FastWeightOptimizer(config, fast)
    return AdaptationRun(
        document=rows, inputs=inputs, optimizer=optimizer, evaluator=None, reads_again=False
    )


def equal_spans(evidence: Sequence[Span], end: int, rollout_tokens: int) -> list[Span]:
    """Cut or shift spans so that all have one length, as the rows of a step must.

    Args:
        evidence: the spans.
        end: tokens of the document.
        rollout_tokens: k; a span holds a rollout and as many tokens before it.

    Returns:
        The spans, or none if the document has no room for any.
    """
    room = end - FIRST_TOKEN
    length = min([*(stop - start for start, stop in evidence), room], default=0)
    length = min(max(length, 2 * rollout_tokens), room)
    if length < 2 * rollout_tokens:
        return []
    starts = {max(FIRST_TOKEN, min(start, end - length)) for start, _ in evidence}
    return [Span(start, start + length) for start in sorted(starts)]


def _target(
    document: FrozenDocument, config: AdaptConfig, aims: Sequence[Aim]
) -> AttentionTargets | None:
    if not config.loss.attention:
        return None
    layers = supervised_layers(document.model.attention_layers)
    try:
        targets = (AttentionTarget.of(document, a.question, a.evidence, layers) for a in aims)
        return AttentionTargets(tuple(targets))
    except ValueError as error:
        raise RequestError(f"evidence: {error}", "evidence", "invalid_value") from None


def _report(
    config: AdaptConfig,
    steps: Sequence[StepReport],
    chosen: FastWeights,
    reason: str | None,
    stopped: str | None,
) -> AdaptationReport:
    losses = [step.ntp_loss for step in steps if math.isfinite(step.ntp_loss)]
    return AdaptationReport(
        objective=config.objective,
        steps=tuple(steps),
        accepted_step=0 if chosen.is_base else len(steps),
        kept_base_reason=reason,
        stopped=stopped,
        first_ntp_loss=losses[0] if losses else None,
        final_ntp_loss=losses[-1] if losses else None,
        fast_weight_bytes=chosen.nbytes,
    )
