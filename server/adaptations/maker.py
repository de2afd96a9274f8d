"""How adaptations come into being: made here, made by another server, or stored by one."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.index import Index
from refine_server.server.adaptations.sharing import Sharing, adaptation_elsewhere
from refine_server.server.adaptations.storage import (
    Saved,
    Storage,
    StoredAdaptation,
    fill,
    revive,
)
from refine_server.server.adaptations.store.errors import StoreError
from refine_server.server.adaptations.store.leases import Lease
from refine_server.server.engine.events import Accepted, QueueMoved, RunEvent
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.http.request_log import RequestLog
from refine_server.server.metrics.declarations import Metrics
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
    DocumentTraced,
)

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept


logger = logging.getLogger(__name__)


MAX_TRACED = 64
"""The most adaptations that have ended whose traces stay in memory, of 2 MiB each at most."""


class Maker:
    """Makes adaptations, or waits for the server that makes them; each in a task of its own.

    Args:
        index: has the adaptations.
        storage: takes what is made.
        sharing: says which server makes an adaptation.
        metrics: counts those that were found and those that had to be made.
        on_changed: is called when an adaptation has a document, or has ended without one.
        make_room: makes room for a document of so many bytes; returns whether it can be stored,
            and raises ApiError if it can never be kept in memory.
    """

    def __init__(
        self,
        index: Index,
        storage: Storage,
        sharing: Sharing,
        metrics: Metrics,
        on_changed: Callable[[], None],
        make_room: Callable[[int], Awaitable[bool]],
    ) -> None:
        self._index, self._storage, self._sharing = index, storage, sharing
        self._metrics, self._on_changed, self._make_room = metrics, on_changed, make_room
        self._tasks: set[asyncio.Task[None]] = set()
        self._traced: list[Adaptation] = []
        """Adaptations whose traces are in memory, the oldest first."""

    def start(self, adaptation: Adaptation) -> None:
        """Make an adaptation, which has its work or is made by another server."""
        adaptation.task = asyncio.create_task(self._make(adaptation))
        self._tasks.add(adaptation.task)
        adaptation.task.add_done_callback(self._tasks.discard)

    async def admission_of(self, adaptation: Adaptation) -> None:
        """Wait until an adaptation is under way; give it up when nobody waits for that any more."""
        adaptation.joined += 1
        try:
            await asyncio.shield(adaptation.admitted)
        finally:
            adaptation.joined -= 1
            if not (adaptation.joined or adaptation.admitted.done() or adaptation.task is None):
                self._index.forget(adaptation)
                adaptation.task.cancel()

    def cancel(self, adaptation: Adaptation) -> None:
        """End an adaptation that was deleted, unless it has ended."""
        self._index.forget(adaptation)
        if adaptation.status.is_final:
            return
        adaptation.set_status(Status.CANCELLED)
        error = errors.no_adaptation(adaptation.id)
        adaptation.refuse(error)
        if adaptation.run is not None:
            adaptation.run.cancel("deleted", error)
        elif adaptation.task is not None:
            adaptation.task.cancel()

    async def store_again(self) -> None:
        """Store what could not be stored while there was no store."""
        for adaptation in list(self._index.all):
            document = adaptation.document
            if document is None or adaptation.stored or adaptation.status is not Status.READY:
                continue
            if not await self._make_room(document.nbytes):
                continue
            saved = await self._storage.save(adaptation, document)
            adaptation.stored = saved in (Saved.STORED, Saved.BY_ANOTHER)

    def discover(self, found: StoredAdaptation | Lease) -> Adaptation | None:
        """Add an adaptation that another server has stored or makes, or a former process did."""
        if isinstance(found, StoredAdaptation):
            adaptation = self._index.get(found.manifest.id)
            if adaptation is not None and adaptation.stored:
                adaptation.expire_in(found.expires_at - time.time())
                return adaptation
            adaptation = revive(found)
            if adaptation is not None:
                self._index.add(adaptation)
            return adaptation
        adaptation = self._index.get(found.id)
        if adaptation is None and not self._sharing.is_own(found):
            adaptation = adaptation_elsewhere(found)
            self._index.add(adaptation)
            self.start(adaptation)
        return adaptation

    async def close(self, seconds: float) -> None:
        """Wait for adaptations that run, which the engine ends; do not wait for other servers."""
        for adaptation in self._index.all:
            if adaptation.is_elsewhere and adaptation.task is not None:
                adaptation.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await self._sharing.close()

    # -- one adaptation -----------------------------------------------------------------------

    async def _make(self, adaptation: Adaptation) -> None:
        try:
            if adaptation.is_elsewhere:
                left = await self._follow(adaptation)
            else:
                left = None
            while not adaptation.status.is_final and adaptation.twin is None:
                left = await self._make_or_follow(adaptation, left)
        except Exception as error:
            self._fail(adaptation, error)
        finally:
            adaptation.run = None
            adaptation.refuse(errors.shutting_down())
            self._on_changed()

    async def _make_or_follow(self, adaptation: Adaptation, left: Lease | None) -> Lease | None:
        if adaptation.work is None:
            raise errors.unavailable(
                "The server that made this adaptation has stopped. Send the document again.",
                "adaptation_abandoned",
            )
        claim = await self._sharing.claim(adaptation, left)
        if claim.is_ours:
            self._index.rename(adaptation, claim.id)
            if not adaptation.is_elsewhere:
                self._metrics.cache_misses.inc()
            await self._work(adaptation, claim.lease)
            return None
        if not adaptation.is_elsewhere:
            self._metrics.cache_hits.inc()
        known = self._index.get(claim.id)
        if known is not None and known is not adaptation and known.status is not Status.FAILED:
            self._index.forget(adaptation)
            self._index.add(known)
            if known.is_elsewhere:  # to be made here should that server stop
                known.work = known.work or adaptation.work
            adaptation.twin = known
            adaptation.join()
            return None
        self._index.rename(adaptation, claim.id)
        return await self._follow(adaptation)

    async def _work(self, adaptation: Adaptation, lease: Lease | None) -> None:
        """Make it here."""
        assert adaptation.work is not None
        adaptation.is_elsewhere = False
        log = RequestLog()
        failure: ApiError | None = None
        try:
            renewing = self._sharing.holding(lease, lambda: self.cancel(adaptation))
            async with renewing, adaptation.work as run:
                adaptation.admit(run)
                self._sharing.admit(lease)
                async for event in log.recorded(run):
                    await self._handle(adaptation, event)
        except Exception as error:
            failure = errors.as_api_error(error) if adaptation.admitted.done() else None
            self._fail(adaptation, error)
        finally:
            if adaptation.status.is_final:
                _log_end(adaptation, log)
            if adaptation.stored or failure is not None:
                self._sharing.end(lease, failure)
            else:
                self._sharing.drop(lease)

    async def _follow(self, adaptation: Adaptation) -> Lease | None:
        """Wait for the server that makes it; return the lease that this leaves if it stops."""
        adaptation.is_elsewhere = True
        if not adaptation.events:
            accepted = Accepted(queue_position=0, estimate=None, seconds_left=None)
            adaptation.add_event(accepted)
        found = await self._sharing.follow(adaptation)
        if isinstance(found, StoredAdaptation):
            if not fill(adaptation, found):
                raise ApiError(409, "The stored adaptation cannot be used.", "adaptation_lost")
            adaptation.join()
        elif isinstance(found, ApiError):
            raise found
        if adaptation.status is Status.CANCELLED:
            self._index.forget(adaptation)
        return found if isinstance(found, Lease) else None

    def _fail(self, adaptation: Adaptation, error: Exception) -> None:
        if adaptation.admitted.done():
            self._index.forget_key(adaptation)
            adaptation.fail(errors.as_api_error(error))
        else:
            self._index.forget(adaptation)
            adaptation.refuse(error)
            adaptation.set_status(Status.FAILED)

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
            case DocumentTraced():
                adaptation.add_event(event)
                self._limit_traces(adaptation)
            case DocumentRead():
                adaptation.overflow, adaptation.document_key = event.overflow, event.key
                adaptation.add_event(event)
                adaptation.set_status(Status.ADAPTING)
            case AdaptationEnded(report):
                adaptation.report = report
            case DocumentAdapted(document):
                await self._keep(adaptation, document)

    def _limit_traces(self, adaptation: Adaptation) -> None:
        """Drop the traces of adaptations that have ended, where newer ones were traced."""
        if adaptation not in self._traced:
            self._traced.append(adaptation)
        ended = [other for other in self._traced if other.status.is_final]
        for other in ended[: max(len(self._traced) - MAX_TRACED, 0)]:
            other.forget_traces()
            self._traced.remove(other)

    async def _keep(self, adaptation: Adaptation, document: "Kept") -> None:
        can_be_stored = await self._make_room(document.nbytes)
        adaptation.document, adaptation.nbytes = document, document.nbytes
        adaptation.citations = document.citations
        if document.report.stopped == "shutdown":  # it made fewer steps than were asked for
            self._index.forget_key(adaptation)
        saved = Saved.UNSAVED
        if can_be_stored:
            saved = await self._storage.save(adaptation, document)
        adaptation.stored = saved in (Saved.STORED, Saved.BY_ANOTHER)
        if saved is Saved.CANCELLED:
            self.cancel(adaptation)
        elif adaptation not in self._index:  # it was deleted meanwhile
            await self._delete(adaptation)
        if saved is Saved.BY_ANOTHER:
            await self._take_stored(adaptation)
        adaptation.set_status(Status.READY)
        adaptation.touch()
        self._on_changed()

    async def _take_stored(self, adaptation: Adaptation) -> None:
        """Give up what was made here for what another server, which took over, has stored."""
        try:
            found = await self._storage.find(adaptation.id)
        except StoreError:
            return
        if isinstance(found, StoredAdaptation) and fill(adaptation, found):
            adaptation.document = None

    async def _delete(self, adaptation: Adaptation) -> None:
        try:
            await self._storage.delete(adaptation)
        except StoreError:
            return  # counted; it expires


def _log_end(adaptation: Adaptation, log: RequestLog) -> None:
    """Log how the work of an adaptation ended; the request that asked for it may be long over."""
    if report := adaptation.report:
        log.answered_by, log.kept_base_reason = report.answered_by, report.kept_base_reason
    more = {"key": adaptation.owner, "adaptation": adaptation.id, **log.fields()}
    logger.info("adaptation %s is %s", adaptation.id, adaptation.status.value, extra=more)
