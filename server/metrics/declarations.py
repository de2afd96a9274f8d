"""Every metric that is written where it happens, by name, help text, labels and buckets.

Each app has a registry of its own, so that two in a process do not mix.
"""

from importlib.metadata import version
from platform import python_version

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

from refine_server.server.engine.backend.protocol import Backend

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


STORE_OPERATIONS = "probe", "list", "find", "load", "save", "delete"
"""Operations of the store whose failures are series from the start, so that the first one counts:
Prometheus sees no increase in a series that begins with 1."""
STAGES = "encoding", "queued", "running"
"""What a request that reaches its time limit may be doing."""


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
        self.rejections = counter(
            "rejections_total",
            "HTTP requests that were refused (4xx or 503), by the error's code and the name of the "
            "API key; '-': no valid key.",
            *("reason", "key"),
        )
        self.deadline_misses = counter(
            "deadline_misses_total",
            "Requests that reached their time limit, by what they were doing: encoding, queued or "
            "running.",
            "stage",
        )
        for stage in STAGES:
            self.deadline_misses.labels(stage)
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
        self.prompt_tokens = counter(
            "prompt_tokens_total",
            "Tokens of documents, queries and prompts, by kind; those of a cached_document had "
            "been read before.",
            "kind",
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
        for operation in STORE_OPERATIONS:
            self.store_errors.labels(operation)
        self.store_entries = Gauge(
            "refine_store_entries",
            "Adaptations in the store; unreadable ones are of another version of refine-server.",
            ["state"],
            registry=registry,
        )
        self.store_bytes = Gauge(
            "refine_store_bytes", "Bytes of all adaptations in the store.", registry=registry
        )
        self.store_limit = Gauge(
            "refine_store_limit_bytes",
            "Disk space that the store may take (--store-bytes); 0 where there is no store.",
            registry=registry,
        )
        self.store_up = Gauge(
            "refine_store_up",
            "Whether the store can be read and written (1) or not (0); 1 where there is none.",
            registry=registry,
        )
        self.store_up.set(1)
        build = Info("refine_build", "Versions of the server's software.", registry=registry)
        build.info(
            {
                "version": version("refine-server"),
                "torch": version("torch"),
                "python": python_version(),
            }
        )
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
