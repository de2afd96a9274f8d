"""Spans of a request's work in the engine: queue, read, adapt with its steps, and decode."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode, Tracer
from typing_extensions import override

from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job, JobStatus
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    CompletionEnded,
    DocumentRead,
    Event,
    PromptRead,
)
from refine_server.ttt.interface.reports import StepReport

if TYPE_CHECKING:  # it is an optional dependency
    from opentelemetry.sdk.trace import TracerProvider

Attributes = dict[str, str | int | float]
"""Numbers and names, never a text of a request."""

NANOSECONDS = 10**9


@dataclass(kw_only=True, slots=True)
class _Trace:
    """The spans of one job."""

    parent: Context
    """The request's span."""
    queue: Span
    adapt: Span | None = None
    step_began: int = 0
    """When the present step began, in nanoseconds since 1970."""


class EngineSpans(EngineObserver):
    """Records the phases of each job as children of the span of the request that asked for it.

    A phase is told of when it ends, with the seconds that it took, so most spans are made then. A
    step begins where the one before it ended, so that turns of other requests in between show.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        self._tracer: Tracer = provider.get_tracer("refine-server")
        self._traces: dict[Job, _Trace] = {}

    @override
    def on_submitted(self, job: Job) -> None:
        parent = trace.set_span_in_context(trace.get_current_span())
        queue = self._tracer.start_span(
            "queue",
            parent,
            attributes={
                "refine.tokens": job.tokens,
                "refine.priority": job.priority,
                "refine.estimate_seconds": job.estimate.total,
            },
        )
        self._traces[job] = _Trace(parent=parent, queue=queue)

    @override
    def on_started(self, job: Job) -> None:
        if (spans := self._traces.get(job)) is not None:
            spans.queue.end()

    @override
    def on_event(self, job: Job, event: Event) -> None:
        spans = self._traces.get(job)
        if spans is None:
            return
        match event:
            case DocumentRead():
                tokens: Attributes = {"refine.document_tokens": event.document_tokens}
                tokens["refine.is_cached"] = event.is_cached
                self._past("read", spans.parent, event.seconds, tokens)
            case PromptRead():
                read: Attributes = {"refine.prompt_tokens": event.tokens}
                self._past("read", spans.parent, event.seconds, read)
            case AdaptationStarted(steps):
                spans.step_began = time.time_ns()
                attributes: Attributes = {"refine.max_steps": steps}
                spans.adapt = self._tracer.start_span(
                    "adapt", spans.parent, attributes=attributes, start_time=spans.step_began
                )
            case AdaptationStep(report):
                self._add_step(spans, report)
            case AdaptationEnded(report):
                if spans.adapt is not None:
                    spans.adapt.set_attribute("refine.steps", len(report.steps))
                    spans.adapt.set_attribute("refine.accepted_step", report.accepted_step)
                    spans.adapt.set_attribute("refine.answered_by", report.answered_by)
                    for name in ("stopped", "kept_base_reason"):
                        if (value := getattr(report, name)) is not None:
                            spans.adapt.set_attribute(f"refine.{name}", value)
                    spans.adapt.end()
            case AnswerCompleted(usage=usage, timings=timings):
                decoded: Attributes = {"refine.completion_tokens": usage.completion_tokens}
                self._past("decode", spans.parent, timings.decode_seconds, decoded)
            case CompletionEnded(timings=timings):
                decoded = {"refine.completion_tokens": event.completion_tokens}
                self._past("decode", spans.parent, timings.decode_seconds, decoded)

    @override
    def on_left(self, job: Job) -> None:
        spans = self._traces.pop(job, None)
        if spans is None:
            return
        for span in (spans.queue, spans.adapt):
            if span is not None and span.is_recording():  # it has not ended
                reason = "ended early" if job.status is JobStatus.COMPLETED else job.reason
                span.set_status(StatusCode.ERROR, reason)
                span.end()

    def _add_step(self, spans: _Trace, report: StepReport) -> None:
        if spans.adapt is None:
            return
        measured = {
            "loss": report.loss,
            "ntp_loss": report.ntp_loss,
            "grad_norm": report.grad_norm,
            "reward_mean": report.reward_mean,
        }
        attributes: Attributes = {
            f"refine.{name}": value for name, value in measured.items() if math.isfinite(value)
        }
        attributes |= {"refine.step": report.step, "refine.work_seconds": report.seconds}
        attributes["refine.rollout_tokens"] = report.rollout_tokens
        span = self._tracer.start_span(
            "step",
            trace.set_span_in_context(spans.adapt),
            attributes=attributes,
            start_time=spans.step_began,
        )
        spans.step_began = time.time_ns()
        span.end(spans.step_began)

    def _past(self, name: str, parent: Context, seconds: float, attributes: Attributes) -> None:
        """Record a span that ends now."""
        end = time.time_ns()
        began = end - int(seconds * NANOSECONDS)
        self._tracer.start_span(name, parent, attributes=attributes, start_time=began).end(end)
