"""The metrics of the engine's work, written as it happens."""

import math
import time
from collections.abc import Sequence

from prometheus_client import Histogram
from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job, JobStatus
from refine_server.server.metrics.declarations import Metrics
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    CompletionDelta,
    CompletionEnded,
    DocumentRead,
    Event,
    PromptRead,
)
from refine_server.ttt.interface.reports import AdaptationReport, Timings
from refine_server.ttt.interface.requests import CompletionRequest, Work


class EngineMetrics(EngineObserver):
    """Measures what the engine does."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last_token: dict[Job, float] = {}

    @override
    def on_opened(self, backend: Backend) -> None:
        self._metrics.describe(backend)

    @override
    def on_started(self, job: Job) -> None:
        self._metrics.queue_seconds.observe(job.queue_seconds)

    @override
    def on_batch(self, operation: str, outcomes: Sequence[object]) -> None:
        self._metrics.batch_size.labels(operation).observe(len(outcomes))
        for outcome in outcomes:
            if drafted := getattr(outcome, "drafted", 0):
                self._metrics.drafted_tokens.inc(drafted)
                self._metrics.accepted_tokens.inc(getattr(outcome, "accepted", 0))

    @override
    def on_event(self, job: Job, event: Event) -> None:
        metrics = self._metrics
        match event:
            case DocumentRead():
                cache = metrics.document_cache_hits, metrics.document_cache_misses
                cache[not event.is_cached].inc()
                kind = "cached_document" if event.is_cached else "document"
                metrics.prompt_tokens.labels(kind).inc(event.document_tokens)
                metrics.prefill_seconds.observe(event.seconds)
                metrics.document_tokens.observe(event.document_tokens)
            case AdaptationStep(report):
                metrics.adapt_step_seconds.observe(report.seconds)
                metrics.rollout_tokens.inc(report.rollout_tokens)
                if report.rollout_tokens:
                    _observe_finite(metrics.reward, report.reward_mean)
            case AdaptationEnded(report):
                metrics.adapt_seconds.labels(report.objective).observe(event.seconds)
                if report.kept_base_reason is not None:
                    metrics.kept_base.labels(report.kept_base_reason).inc()
                if report.first_ntp_loss is not None and report.final_ntp_loss is not None:
                    change = report.final_ntp_loss - report.first_ntp_loss
                    _observe_finite(metrics.ntp_loss_delta, change)
            case PromptRead():
                metrics.prompt_tokens.labels("prompt").inc(event.tokens)
                metrics.prefill_seconds.observe(event.seconds)
            case AnswerDelta() | CompletionDelta():
                self._observe_token(job)
            case AnswerCompleted(adaptation=report, usage=usage, timings=timings):
                metrics.prompt_tokens.labels("query").inc(usage.query_tokens)
                self._observe_answer(job, report, usage.completion_tokens, timings)
            case CompletionEnded(timings=timings):
                kept = _kept_report(job.work.request)
                self._observe_answer(job, kept, event.completion_tokens, timings)

    @override
    def on_ended(self, job: Job, worked_seconds: float) -> None:
        self._last_token.pop(job, None)
        if job.status is not JobStatus.COMPLETED:
            self._metrics.wasted_seconds.labels(job.reason).inc(worked_seconds)

    @override
    def on_deadline_missed(self, stage: str) -> None:
        self._metrics.deadline_misses.labels(stage).inc()

    @override
    def on_isolation_violated(self) -> None:
        self._metrics.isolation_violations.inc()

    def _observe_token(self, job: Job) -> None:
        now = time.monotonic()
        last = self._last_token.get(job)
        if last is not None:
            self._metrics.inter_token_seconds.observe(now - last)
        self._last_token[job] = now

    def _observe_answer(
        self, job: Job, report: AdaptationReport | None, tokens: int, timings: Timings
    ) -> None:
        answered_by = "base" if report is None else report.answered_by
        reason = report and report.kept_base_reason
        self._metrics.answers.labels(answered_by, reason or "").inc()
        self._metrics.generated_tokens.inc(tokens)
        if tokens:  # a prompt may be read only
            self._metrics.decode_seconds.observe(timings.decode_seconds)
            self._metrics.first_token_seconds.labels(answered_by).observe(
                job.queue_seconds + timings.time_to_first_token_seconds
            )


def _kept_report(work: Work) -> AdaptationReport | None:
    """Return the report of the kept adaptation that a completion continues; None without one."""
    kept = (work.adapted or work.kept) if isinstance(work, CompletionRequest) else None
    return None if kept is None else kept.report


def _observe_finite(histogram: Histogram, value: float) -> None:
    """Observe a value unless it is NaN or infinite, which would stay in the histogram's sum."""
    if math.isfinite(value):
        histogram.observe(value)
