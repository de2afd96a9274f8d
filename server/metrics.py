"""Prometheus metrics. Each app has a registry of its own, so that two in a process do not mix."""

import math
import time
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job, JobStatus
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

disable_created_metrics()  # type: ignore[no-untyped-call]
"""Without it every counter and histogram has one more series, the time when it was created."""

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
TOKENS = tuple(float(2**n) for n in range(5, 18))
SIZES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
REWARDS = (-1.0, -0.5, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0)
LOSS_DELTAS = (-2.0, -1.0, -0.5, -0.25, -0.1, -0.05, -0.01, 0.0, 0.01, 0.1, 0.5, 1.0)


class Metrics:
    """All metrics of a server. No label holds an id or a raw path, which clients choose."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"refine_{name}", text, labels, buckets=SECONDS, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"refine_{name}", text, labels, registry=registry)

        self.requests = counter(
            "requests_total", "HTTP requests, by endpoint and status code.", "endpoint", "status"
        )
        self.request_seconds = seconds(
            "request_seconds",
            "Duration of HTTP requests, until the last byte of the response.",
            "endpoint",
        )
        self.queue_depth = Gauge(
            "refine_queue_depth", "Requests in the queue, not yet started.", registry=registry
        )
        self.queue_seconds = seconds("queue_seconds", "Time that a request waited in the queue.")
        self.prefill_seconds = seconds(
            "prefill_seconds",
            "Time to process a document or a prompt before adaptation or decoding (prefill).",
        )
        self.adapt_seconds = seconds(
            "adapt_seconds", "Duration of adaptations, by objective.", "objective"
        )
        self.adapt_step_seconds = seconds(
            "adapt_step_seconds", "Duration of single adaptation steps."
        )
        self.batch_size = Histogram(
            "refine_batch_size",
            "Requests in one batch, by operation.",
            ["operation"],
            buckets=SIZES,
            registry=registry,
        )
        self.decode_seconds = seconds("decode_seconds", "Time to decode an answer.")
        self.first_token_seconds = seconds(
            "time_to_first_token_seconds",
            "Time from the submission of a request to the first token of its answer, by the "
            "weights that answer.",
            "answered_by",
        )
        self.inter_token_seconds = seconds(
            "inter_token_seconds", "Time between two decoded tokens of an answer."
        )
        self.document_tokens = Histogram(
            "refine_document_tokens",
            "Length of documents in tokens.",
            buckets=TOKENS,
            registry=registry,
        )
        self.drafted_tokens = counter(
            "drafted_tokens_total",
            "Draft tokens proposed by prompt lookup in unbatched greedy decoding.",
        )
        self.accepted_tokens = counter("accepted_tokens_total", "Draft tokens that were accepted.")
        self.generated_tokens = counter("generated_tokens_total", "Tokens in completed answers.")
        self.rollout_tokens = counter("rollout_tokens_total", "Tokens sampled in rollouts.")
        self.reward = Histogram(
            "refine_reward",
            "Mean reward of the rollouts of a step.",
            buckets=REWARDS,
            registry=registry,
        )
        self.ntp_loss_delta = Histogram(
            "refine_ntp_loss_delta",
            "Change of the next-token loss through an adaptation, in nats per token.",
            buckets=LOSS_DELTAS,
            registry=registry,
        )
        self.answers = counter(
            "answers_total",
            "Completed answers and completions, by the weights that answered and, where these are "
            "the base weights although an adaptation was asked for, by reason.",
            *("answered_by", "kept_base_reason"),
        )
        self.kept_base = counter(
            "kept_base_total",
            "Adaptations whose answers come from the base weights, by reason.",
            "reason",
        )
        self.wasted_seconds = counter(
            "wasted_seconds_total",
            "Time spent on requests that ended without an answer, by reason.",
            "reason",
        )
        self.isolation_violations = counter(
            "isolation_violations_total",
            "Failed isolation checks: weights of another owner, or changed base weights.",
        )
        self.adaptations = Gauge(
            "refine_adaptations",
            "Adaptations that the server keeps, by status.",
            ["status"],
            registry=registry,
        )
        self.cache_hits = counter(
            "adaptation_cache_hits_total",
            "Requests for an adaptation that found an equal one, running or kept.",
        )
        self.cache_misses = counter(
            "adaptation_cache_misses_total", "Requests for an adaptation that started a new one."
        )
        self.cache_evictions = counter(
            "adaptation_cache_evictions_total",
            "Adapted documents dropped from memory to stay within the memory limit.",
        )
        self.store_evictions = counter(
            "store_evictions_total",
            "Adaptations deleted from the store to stay within --store-bytes.",
        )
        self.document_cache_hits = counter(
            "document_cache_hits_total",
            "Answers whose document had been read before, for an earlier question of its owner.",
        )
        self.document_cache_misses = counter(
            "document_cache_misses_total", "Answers whose document had to be read."
        )
        self.files = Gauge(
            "refine_files",
            "Files that the server keeps, outputs of batches included.",
            registry=registry,
        )
        self.file_bytes = Gauge(
            "refine_file_bytes",
            "Size of all files that the server keeps, in bytes.",
            registry=registry,
        )
        self.open_batches = Gauge(
            "refine_open_batches", "Batches that have not ended.", registry=registry
        )
        self.batch_requests = counter(
            "batch_requests_total", "Requests of batches that have ended, by outcome.", "outcome"
        )
        self.store_errors = counter(
            "store_errors_total", "Failed reads and writes of the store, by operation.", "operation"
        )
        self.store_entries = Gauge(
            "refine_store_entries",
            "Adaptations in the store; unreadable ones are of another version of refine-server.",
            ["state"],
            registry=registry,
        )
        self.store_bytes = Gauge(
            "refine_store_bytes", "Bytes of all adaptations in the store.", registry=registry
        )
        self.store_up = Gauge(
            "refine_store_up",
            "Whether the store can be read and written (1) or not (0); 1 where there is none.",
            registry=registry,
        )
        self.store_up.set(1)
        self._model = Info("refine_model", "The model that is served.", registry=registry)

    def describe(self, backend: Backend) -> None:
        """Publish which model is served, and what it keeps in memory."""
        self._model.info(
            {
                "model": backend.name,
                "family": backend.family,
                "parameters": str(backend.parameters),
                "dtype": backend.dtype,
                "device": backend.device,
            }
        )


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
                metrics.prefill_seconds.observe(event.seconds)
            case AnswerDelta() | CompletionDelta():
                self._observe_token(job)
            case AnswerCompleted(adaptation=report, usage=usage, timings=timings):
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
