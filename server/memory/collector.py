"""The memory budget in ``/metrics``."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from refine_server.server.memory.budget import MemoryBudget


class MemoryCollector(Collector):
    """Reads the budget whenever metrics are scraped."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "refine_memory_budget_bytes",
            "Memory that the process may take (--memory-bytes).",
            value=self._budget.total_bytes,
        )
        limits = GaugeMetricFamily(
            "refine_memory_limit_bytes",
            "The most that a kind of memory may take: kept adaptations, requests in work, and "
            "documents as they were read, which get what the other two leave now.",
            labels=["kind"],
        )
        limits.add_metric(["adaptations"], self._budget.adaptation_bytes)
        limits.add_metric(["requests"], self._budget.request_bytes)
        limits.add_metric(["documents"], self._budget.document_bytes)
        yield limits
        kinds = GaugeMetricFamily(
            "refine_memory_bytes",
            "Memory by kind: the process with its model alone, kept adaptations, documents as they "
            "were read, requests in work at their predicted peak, and what the allocator holds "
            "beyond these.",
            labels=["kind"],
        )
        for kind, nbytes in self._budget.by_kind().items():
            kinds.add_metric([kind], nbytes)
        yield kinds
