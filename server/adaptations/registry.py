"""All adaptations of the server: adapt to a document once, ask it any number of questions.

Everything here runs on the event loop, so nothing is locked; what blocks (the store) runs in a
thread. Documents that leave memory are loaded from the store when they are asked for again.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from refine_server.server.access.keys import Keyring
from refine_server.server.adaptations.adaptation import Adaptation, Status, request_key
from refine_server.server.adaptations.budget import MemoryBudget, require_place
from refine_server.server.adaptations.ids import new_id
from refine_server.server.adaptations.storage import Storage
from refine_server.server.adaptations.store.errors import StoreError
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.engine import Engine
from refine_server.server.engine.events import Accepted, QueueMoved, RunEvent
from refine_server.server.engine.run import Run
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.http.request_log import RequestLog
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
)
from refine_server.ttt.interface.requests import AdaptRequest

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
"""Time between two sweeps of what has expired."""


class Adaptations:
    """The adaptations by id and by what was asked for.

    Args:
        engine: runs the work.
        settings: the memory budget, times to live, and where the store is.
        metrics: counts adaptations, cache hits and evictions.
        keyring: has the owners' quotas on stored bytes.
    """

    def __init__(
        self, engine: Engine, settings: Settings, metrics: Metrics, keyring: Keyring
    ) -> None:
        self._engine, self._settings, self._metrics = engine, settings, metrics
        self._keyring = keyring
        self._storage = Storage(settings, metrics)
        self._budget = MemoryBudget(settings.adaptation_memory_bytes)
        self._by_id: dict[str, Adaptation] = {}
        self._by_key: dict[str, Adaptation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._backend: Backend | None = None
        self.is_open = False
        """Whether it is known what the store has."""

    # -- life cycle ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring back what is stored, then sweep what expires; runs until cancelled."""
        self._backend = backend = await asyncio.wrap_future(self._engine.opened)
        for manifest, expires_at in await self._storage.open(backend):
            adaptation = self._storage.revive(manifest, expires_at)
            if adaptation is not None and adaptation.id not in self._by_id:
                self._register(adaptation)
        self.is_open = True
        while True:
            self._update_gauges()
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def close(self, seconds: float) -> None:
        """Wait for adaptations that run, which the engine ends, and store their results."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await self._storage.close()

    def require_open(self) -> None:
        """Raise 503 while it is not known yet what the store has."""
        if not self.is_open:
            self._engine.ready()
            raise errors.unavailable(
                "The server is still reading its store of adaptations.", "loading"
            )

    async def sweep(self) -> None:
        """Forget and delete what has expired."""
        if self._backend is not None:
            self._backend.drop_expired_documents()
        for adaptation in [a for a in self._by_id.values() if a.is_expired]:
            self._forget(adaptation)
            await self._storage.delete(adaptation)

    # -- what routes call ---------------------------------------------------------------------

    async def create(
        self,
        request: AdaptRequest,
        *,
        request_id: str,
        ttl_seconds: float | None = None,
        priority: int = 0,
        timeout_seconds: float | None = None,
    ) -> Adaptation:
        """Adapt to a document, or join the owner's adaptation to it with the same configuration.

        Returns as soon as the work is in the queue. Work that is not is dropped when everybody who
        asked for it is cancelled.

        Raises:
            RequestError: the document cannot be served.
            ApiError: the server is not ready, the queue is full, or the owner keeps too many.
        """
        self.require_open()
        key = request_key(request, self._engine.ready().fingerprint)
        adaptation = self._by_key.get(key)
        if adaptation is not None:
            self._metrics.cache_hits.inc()
        else:
            self._require_place(request.owner)
            self._metrics.cache_misses.inc()
            ttl = self._settings.adaptation_ttl_seconds if ttl_seconds is None else ttl_seconds
            adaptation = Adaptation(new_id(), request.owner, key, request.adapt, ttl)
            self._register(adaptation)
            longest = self._settings.request_timeout_seconds
            work = self._engine.run(
                request,
                request_id=request_id,
                timeout_seconds=min(timeout_seconds or longest, longest),
                priority=priority,
            )
            self._start(adaptation, work)
        await self._admission_of(adaptation)
        adaptation.touch()
        return adaptation

    def find_equal(self, request: AdaptRequest) -> Adaptation | None:
        """Return the adaptation that an equal request would join; None if it would make a new one.

        Raises:
            ApiError: the server is not ready, or the owner keeps too many for a new one.
        """
        self.require_open()
        found = self._by_key.get(request_key(request, self._engine.ready().fingerprint))
        if found is None:
            self._require_place(request.owner)
        return found

    def get(self, owner: str, adaptation_id: str) -> Adaptation:
        """Return an owner's adaptation; raise 404 for an unknown one and for another owner's."""
        self.require_open()
        adaptation = self._by_id.get(adaptation_id)
        if adaptation is None or adaptation.owner != owner or adaptation.is_expired:
            raise errors.no_adaptation(adaptation_id)
        return adaptation

    def list(self, owner: str) -> list[Adaptation]:
        """Return an owner's adaptations, the newest first."""
        own = [a for a in self._by_id.values() if a.owner == owner and not a.is_expired]
        return sorted(own, key=lambda a: a.created_at, reverse=True)

    async def delete(self, owner: str, adaptation_id: str) -> Adaptation:
        """Cancel an adaptation if it runs, and forget it; requests that use it now go on."""
        adaptation = self.get(owner, adaptation_id)
        self._forget(adaptation)
        if not adaptation.status.is_final:
            adaptation.set_status(Status.CANCELLED)
            error = errors.no_adaptation(adaptation_id)
            adaptation.refuse(error)
            if adaptation.run is not None:
                adaptation.run.cancel("deleted", error)
            elif adaptation.task is not None:
                adaptation.task.cancel()
        await self._storage.delete(adaptation)
        return adaptation

    @asynccontextmanager
    async def use(self, owner: str, adaptation_id: str) -> "AsyncIterator[Kept]":
        """Give the adapted document, and keep it in memory meanwhile; wait until it is ready.

        Raises:
            ApiError: it does not exist, it failed, or it does not fit into memory now.
        """
        adaptation = self.get(owner, adaptation_id)
        adaptation.users += 1
        adaptation.touch()
        try:
            if await adaptation.wait_until_final() is not Status.READY:
                raise errors.adaptation_failed(adaptation_id, adaptation.error)
            async with adaptation.loading:
                document = adaptation.document or await self._load(adaptation)
            yield document
        finally:
            adaptation.users -= 1
            adaptation.touch()
            self._evict()

    # -- the work of one adaptation -----------------------------------------------------------

    def _start(self, adaptation: Adaptation, work: AbstractAsyncContextManager[Run]) -> None:
        adaptation.task = asyncio.create_task(self._adapt(adaptation, work))
        self._tasks.add(adaptation.task)
        adaptation.task.add_done_callback(self._tasks.discard)

    async def _admission_of(self, adaptation: Adaptation) -> None:
        adaptation.joined += 1
        try:
            await asyncio.shield(adaptation.admitted)
        finally:
            adaptation.joined -= 1
            if not (adaptation.joined or adaptation.admitted.done() or adaptation.task is None):
                self._forget(adaptation)
                adaptation.task.cancel()

    async def _adapt(self, adaptation: Adaptation, work: AbstractAsyncContextManager[Run]) -> None:
        log = RequestLog()
        try:
            async with work as run:
                adaptation.admit(run)
                async for event in log.recorded(run):
                    await self._handle(adaptation, event)
        except Exception as error:
            if adaptation.admitted.done():
                self._forget_key(adaptation)
                adaptation.fail(errors.as_api_error(error))
            else:
                self._forget(adaptation)
                adaptation.refuse(error)
        finally:
            adaptation.run = None
            adaptation.refuse(errors.shutting_down())
            if adaptation.status.is_final:
                _log_end(adaptation, log)
            self._update_gauges()

    async def _handle(self, adaptation: Adaptation, event: RunEvent) -> None:
        match event:
            case (
                Accepted()
                | QueueMoved()
                | DocumentReading()
                | AdaptationStarted()
                | AdaptationStep()
            ):
                adaptation.add_event(event)
            case DocumentRead():
                adaptation.overflow, adaptation.document_key = event.overflow, event.key
                adaptation.add_event(event)
                adaptation.set_status(Status.ADAPTING)
            case AdaptationEnded(report):
                adaptation.report = report
            case DocumentAdapted(document):
                await self._keep(adaptation, document)

    async def _keep(self, adaptation: Adaptation, document: "Kept") -> None:
        adaptation.document, adaptation.nbytes = document, document.nbytes
        adaptation.citations = document.citations
        if document.report.stopped == "shutdown":  # it made fewer steps than were asked for
            self._forget_key(adaptation)
        adaptation.stored = await self._storage.save(adaptation, document)
        if adaptation.id not in self._by_id:  # it was deleted meanwhile
            await self._storage.delete(adaptation)
        adaptation.set_status(Status.READY)
        adaptation.touch()
        self._evict()

    # -- memory -------------------------------------------------------------------------------

    async def _load(self, adaptation: Adaptation) -> "Kept":
        self._evict(adaptation.nbytes)
        if not self._budget.fits(self._by_id.values(), adaptation.nbytes):
            raise errors.unavailable(
                "Adaptations in use take all memory for adaptations.", "memory_in_use"
            )
        try:
            adaptation.document = await self._storage.load(adaptation.id)
        except StoreError as error:
            self._forget(adaptation)
            message = f"The adaptation {adaptation.id!r} is lost: {error}. Adapt again."
            raise ApiError(409, message, "adaptation_lost") from error
        return adaptation.document

    def _evict(self, nbytes: int = 0) -> None:
        """Keep within the memory budget with ``nbytes`` more; forget what is not stored."""
        for adaptation in self._budget.evict(self._by_id.values(), nbytes):
            self._metrics.cache_evictions.inc()
            if not adaptation.stored:
                self._forget(adaptation)
        self._update_gauges()

    # -- bookkeeping --------------------------------------------------------------------------

    def _register(self, adaptation: Adaptation) -> None:
        self._by_id[adaptation.id] = adaptation
        if adaptation.key is not None:
            self._by_key[adaptation.key] = adaptation

    def _forget(self, adaptation: Adaptation) -> None:
        self._by_id.pop(adaptation.id, None)
        self._forget_key(adaptation)
        self._forget_document(adaptation)

    def _forget_document(self, adaptation: Adaptation) -> None:
        """Drop the document as the base model read it, unless another adaptation uses it."""
        owner, key = adaptation.owner, adaptation.document_key
        used = {a.document_key for a in self._by_id.values() if a.owner == owner}
        if self._backend is not None and key is not None and key not in used:
            self._backend.forget_document(owner, key)

    def _forget_key(self, adaptation: Adaptation) -> None:
        """Let no other request join the adaptation."""
        if adaptation.key is not None and self._by_key.get(adaptation.key) is adaptation:
            del self._by_key[adaptation.key]
        adaptation.key = None

    def _require_place(self, owner: str) -> None:
        require_place(
            self.list(owner),
            self._by_id.values(),
            max_count=self._settings.max_adaptations,
            max_bytes=self._keyring.quotas_of(owner).adaptation_bytes,
        )

    def _update_gauges(self) -> None:
        counts = Counter(adaptation.status for adaptation in self._by_id.values())
        for status in Status:
            self._metrics.adaptations.labels(status.value).set(counts[status])
        self._metrics.adaptation_bytes.set(self._budget.used(self._by_id.values()))


def _log_end(adaptation: Adaptation, log: RequestLog) -> None:
    """Log how the work of an adaptation ended; the request that asked for it may be long over."""
    if report := adaptation.report:
        log.answered_by, log.kept_base_reason = report.answered_by, report.kept_base_reason
    more = {"key": adaptation.owner, "adaptation": adaptation.id, **log.fields()}
    logger.info("adaptation %s is %s", adaptation.id, adaptation.status.value, extra=more)
