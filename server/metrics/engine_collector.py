"""The engine's load in ``/metrics``: what waits, what runs, and how busy the model is."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from refine_server.server.engine.engine import Engine

MetricFamily = GaugeMetricFamily | CounterMetricFamily


class EngineCollector(Collector):
    """Reads the engine whenever metrics are scraped, so that work pays nothing for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @override
    def collect(self) -> Iterator[MetricFamily]:
        load = self._engine.load
        yield GaugeMetricFamily(
            "refine_ready",
            "Whether the engine accepts requests (1): the model is loaded and makes progress.",
            value=self._engine.is_ready,
        )
        yield GaugeMetricFamily(
            "refine_queue_depth", "Requests in the queue, not yet started.", value=load.waiting
        )
        yield GaugeMetricFamily(
            "refine_waiting_tokens",
            "Tokens of the documents, queries and prompts of requests in the queue.",
            value=load.waiting_tokens,
        )
        yield GaugeMetricFamily(
            "refine_waiting_seconds",
            "Estimated time that the work of all requests in the queue takes.",
            value=load.waiting_seconds,
        )
        yield GaugeMetricFamily(
            "refine_running_requests",
            "Requests that the model works on, in turns.",
            value=load.running,
        )
        yield CounterMetricFamily(
            "refine_busy_seconds_total",
            "Time that the model's thread spent on finished pieces of work.",
            value=self._engine.busy_seconds,
        )
