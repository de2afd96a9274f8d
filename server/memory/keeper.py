"""Keeps the process within its memory budget: opens it, makes room, and returns what was freed."""

from collections.abc import Callable

from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.memory.device import DeviceMemory, HostMemory, memory_of
from refine_server.server.settings import Settings


class MemoryKeeper(EngineObserver):
    """Watches the engine's work, on the worker's thread.

    Args:
        budget: the budget of the process.
        settings: have the limit, if one was set.
    """

    def __init__(self, budget: MemoryBudget, settings: Settings) -> None:
        self._budget, self._settings = budget, settings
        self._backend: Backend | None = None
        self._memory: DeviceMemory = HostMemory()

    def opening(self, open_backend: Callable[[Settings], Backend]) -> Callable[[], Backend]:
        """Return what opens a backend within the budget."""

        def open_within_budget() -> Backend:
            backend = open_backend(self._settings)
            self._memory = memory = memory_of(backend.device)
            memory.return_freed()
            self._budget.open(self._settings.memory_bytes or memory.default_budget(), memory)
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
            self._memory.return_freed()

    @override
    def on_idle(self) -> None:
        if self._memory.returns_when_idle:
            self._memory.return_freed()
