"""Keeps adaptations within the bytes that memory and the store have for them."""

import contextlib
import logging
from collections import Counter

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.budget import (
    evict,
    next_to_delete,
    stored_bytes,
    used_bytes,
)
from refine_server.server.adaptations.index import Index
from refine_server.server.adaptations.storage import Storage
from refine_server.server.adaptations.store.errors import StoreError
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.metrics.declarations import Metrics

logger = logging.getLogger(__name__)


class Room:
    """What memory and the store have room for; the least recently used adaptations give way.

    Args:
        index: all adaptations.
        storage: deletes them from the store.
        memory: says how much of the process's memory they may take.
        store_bytes: the most that they may take in the store.
        metrics: counts them and those that give way.
    """

    def __init__(
        self,
        index: Index,
        storage: Storage,
        memory: MemoryBudget,
        store_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._index, self._storage, self._memory = index, storage, memory
        self._store_bytes, self._metrics = store_bytes, metrics
        self._bytes = 0
        memory.account("adaptations", lambda: self._bytes)

    def evict(self, nbytes: int = 0) -> None:
        """Keep within the memory budget with ``nbytes`` more; forget what is not stored."""
        for adaptation in evict(self._index.all, self._memory.adaptation_bytes - nbytes):
            self._metrics.cache_evictions.inc()
            if not adaptation.stored:
                self._index.forget(adaptation)
        self.count()

    def require_memory(self, nbytes: int) -> None:
        """Evict until ``nbytes`` more fit; raise 503 if those in use leave no room."""
        self.evict(nbytes)
        room = self._memory.adaptation_bytes
        if used_bytes(self._index.all) + nbytes > room:
            raise errors.unavailable(
                f"Adaptations in use take all of the {room} bytes for adaptations, a part of "
                "--memory-bytes.",
                "memory_in_use",
            )

    async def make_in_store(self, nbytes: int) -> bool:
        """Delete from the store what was not used for the longest time, for ``nbytes`` more.

        One that is deleted from the store is forgotten, even if it is still in memory. One that
        another server on the store has just used stays.

        Returns:
            Whether the store has room.

        Raises:
            ApiError: the memory budget has no room for so large an adaptation, ever.
        """
        room = self._memory.adaptation_bytes
        if nbytes > room:
            message = (
                f"This adaptation takes {nbytes} bytes, and this server has {room} for "
                "adaptations (a part of --memory-bytes). Adapt fewer weights "
                "(adapt.fast_weights), or answer without keeping it (/v1/answers)."
            )
            raise ApiError(413, message, "memory_exceeded", param="adapt.fast_weights")
        if nbytes > self._store_bytes:
            logger.warning("an adaptation of %d bytes exceeds --store-bytes: not stored", nbytes)
            return False
        left = self._store_bytes - nbytes
        spared: list[Adaptation] = []
        with contextlib.suppress(StoreError):  # counted; what was to be deleted expires
            while (oldest := next_to_delete(self._index.all, left, spared)) is not None:
                if await self._storage.is_used_elsewhere(oldest):
                    spared.append(oldest)
                    continue
                self._metrics.store_evictions.inc()
                self._index.forget(oldest)
                await self._storage.delete(oldest)
        return stored_bytes(self._index.all) <= left

    def count(self) -> None:
        """Update the metrics of how many adaptations there are, and what they take in memory."""
        counts = Counter(adaptation.status for adaptation in self._index.all)
        for status in Status:
            self._metrics.adaptations.labels(status.value).set(counts[status])
        self._bytes = used_bytes(self._index.all)
