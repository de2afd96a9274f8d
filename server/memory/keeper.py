"""Keeps the process within its memory budget: opens it, makes room, and returns what was freed."""

from collections.abc import Callable

import psutil
from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job
from refine_server.server.memory.allocator import resident_bytes, return_freed_memory
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.settings import Settings

RESERVE_SHARE = 10
"""A tenth of the memory is left to the system, unless ``--memory-bytes`` is set."""


class MemoryKeeper(EngineObserver):
    """Watches the engine's work, on the worker's thread.

    Args:
        budget: the budget of the process.
        settings: have the limit, if one was set.
    """

    def __init__(self, budget: MemoryBudget, settings: Settings) -> None:
        self._budget, self._settings = budget, settings
        self._backend: Backend | None = None

    def opening(self, open_backend: Callable[[Settings], Backend]) -> Callable[[], Backend]:
        """Return what opens a backend within the budget."""

        def open_within_budget() -> Backend:
            backend = open_backend(self._settings)
            return_freed_memory()
            self._budget.open(self._settings.memory_bytes or default_memory_bytes())
            self._budget.account("documents", lambda: backend.cached_document_bytes)
            backend.limit_memory(self._budget)
            self._backend = backend
            return backend

        return open_within_budget

    @override
    def on_started(self, job: Job) -> None:
        if self._backend is None:
            return
        self._backend.drop_excess_documents()
        if self._budget.exceeds(job.nbytes):
            return_freed_memory()

    @override
    def on_idle(self) -> None:
        return_freed_memory()


def default_memory_bytes() -> int:
    """Return what is free now together with what this process takes, less a reserve."""
    from refine_server.ttt.models.loading.host_memory import available_memory  # it imports torch

    free = available_memory()
    total = psutil.virtual_memory().total if free is None else free + resident_bytes()
    return total - total // RESERVE_SHARE
