"""All adaptations of the server: adapt to a document once, ask it any number of questions.

Everything here runs on the event loop, so nothing is locked; what blocks (the store) runs in a
thread. Documents that leave memory are loaded from the store when they are asked for again.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from refine_server.server.access.keys import Keyring
from refine_server.server.adaptations.adaptation import Adaptation, Status, request_key
from refine_server.server.adaptations.budget import require_place
from refine_server.server.adaptations.connection import Connection
from refine_server.server.adaptations.ids import ID_PATTERN, new_id
from refine_server.server.adaptations.index import Index
from refine_server.server.adaptations.maker import Maker
from refine_server.server.adaptations.room import Room
from refine_server.server.adaptations.sharing import Sharing
from refine_server.server.adaptations.storage import Storage
from refine_server.server.adaptations.store.errors import (
    DamagedEntryError,
    MissingEntryError,
    StoreError,
    UnreadableEntryError,
)
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.engine import Engine
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.requests import AdaptRequest

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
"""Time between two sweeps of what has expired, and between two looks at the store."""
CONFIRM_SECONDS = 1.0
"""How long it is taken for granted that what was in the store is there still."""
MOST_FAILURES = 3
"""The server is not ready after so many failed rounds, one after the other."""


class Adaptations:
    """The adaptations by id and by what was asked for.

    Args:
        engine: runs the work.
        settings: times to live, and where the store is.
        metrics: counts adaptations, cache hits and evictions.
        keyring: has the owners' quotas on stored bytes.
        memory: says how much of the process's memory adaptations may take.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
        keyring: Keyring,
        memory: MemoryBudget,
    ) -> None:
        self._engine, self._settings, self._metrics = engine, settings, metrics
        self._keyring = keyring
        self._connection = Connection(settings, metrics)
        self._storage = Storage(self._connection, metrics)
        self._sharing = Sharing(self._connection, self._storage)
        self._index = Index(self._forget_document)
        self._room = Room(self._index, self._storage, memory, settings.store_bytes, metrics)
        self._maker = Maker(
            self._index,
            self._storage,
            self._sharing,
            metrics,
            self._room.evict,
            self._room.make_in_store,
        )
        self._synchronised = -math.inf
        self._failures = 0  # rounds of ``run`` that failed, one after the other
        self._backend: Backend | None = None
        self.is_open = False
        """Whether it is known what the store has."""

    # -- life cycle ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Find what is stored; then sweep what expires and see what other servers do.

        A round that fails is logged, and the next one is made nevertheless.
        """
        self._backend = backend = await asyncio.wrap_future(self._engine.opened)
        self._storage.open(backend)
        while True:
            try:
                await self._tend(backend)
                self._failures = 0
            except Exception:  # of a fault of this server: failures of the store are StoreErrors
                self._failures += 1
                logger.exception("adaptations could not be swept and compared with the store")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._connection.failed.wait()

    async def _tend(self, backend: Backend) -> None:
        was_available = self._connection.is_available
        await self._connection.check(backend.fingerprint)
        await self._synchronise()
        await self.sweep()
        if self._connection.is_available and not was_available:
            await self._maker.store_again()
        self._room.count()
        self.is_open = True

    async def close(self, seconds: float) -> None:
        """Wait for adaptations that run, which the engine ends, and store their results."""
        await self._maker.close(seconds)
        await self._connection.close()

    def require_open(self) -> None:
        """Raise 503 while it is not known yet what the store has."""
        if not self.is_open:
            self._engine.ready()
            raise errors.unavailable(
                "The server is still reading its store of adaptations.", "loading"
            )

    def require_store(self) -> None:
        """Raise 503 while the store cannot be used, or adaptations are not swept."""
        if self._failures >= MOST_FAILURES:
            message = "Adaptations are not swept any more. The server's log has the reason."
            raise errors.unavailable(message, "adaptations_failed")
        if not self._connection.is_available:
            raise store_unavailable()

    async def sweep(self) -> None:
        """Forget and delete what has expired, and tell other servers what is in use."""
        if self._backend is not None:
            self._backend.drop_expired_documents()
        for adaptation in list(self._index.all):
            if adaptation.users:
                self._storage.mark_use(adaptation)
            elif adaptation.is_expired:
                left = await self._storage.expire(adaptation) if adaptation.stored else None
                if left is None:
                    self._index.forget(adaptation)
                elif left > 0:  # it was used through another server
                    adaptation.expire_in(left)

    async def _synchronise(self) -> None:
        """Take over what other servers, or a former process of this one, changed in the store."""
        if not (self._connection.is_used and self._connection.is_available):
            return
        known = {a.id for a in self._index.all}
        stored = [a.id for a in self._index.all if a.stored]
        try:
            changes = await self._storage.changes(known, stored)
        except StoreError:
            return
        for found in changes.found:
            self._maker.discover(found)
        for adaptation in filter(None, map(self._index.get, changes.gone)):
            self._index.forget(adaptation)
        self._synchronised = time.monotonic()

    # -- what routes call ---------------------------------------------------------------------

    async def create(
        self,
        request: AdaptRequest,
        *,
        request_id: str,
        session: str | None = None,
        ttl_seconds: float | None = None,
        priority: int = 0,
        timeout_seconds: float | None = None,
    ) -> Adaptation:
        """Adapt to a document, or join the owner's adaptation to it with the same configuration.

        Returns as soon as the work is in the queue. Work that is not is dropped when everybody who
        asked for it is cancelled. The id of a new one begins with the session of its document.

        Raises:
            RequestError: the document cannot be served.
            ApiError: the server is not ready, the queue is full, or the owner keeps too many.
        """
        self.require_open()
        key = request_key(request, self._engine.ready().fingerprint)
        adaptation = await self._current(key)
        longest = self._settings.request_timeout_seconds
        work = self._engine.run(
            request,
            request_id=request_id,
            timeout_seconds=min(timeout_seconds or longest, longest),
            priority=priority,
        )
        if adaptation is not None:
            self._metrics.cache_hits.inc()
            if adaptation.is_elsewhere:  # to be made here should that server stop
                adaptation.work = adaptation.work or work
        else:
            self._require_place(request.owner)
            ttl = self._settings.adaptation_ttl_seconds if ttl_seconds is None else ttl_seconds
            adaptation = Adaptation(new_id(session), request.owner, key, request.adapt, ttl)
            adaptation.work = work
            self._index.add(adaptation)
            self._maker.start(adaptation)
        await self._maker.admission_of(adaptation)
        adaptation = adaptation.twin or adaptation
        self._touch(adaptation)
        return adaptation

    def find_equal(self, request: AdaptRequest) -> Adaptation | None:
        """Return the adaptation that an equal request would join; None if it would make a new one.

        Raises:
            ApiError: the server is not ready, or the owner keeps too many for a new one.
        """
        self.require_open()
        found = self._index.find(request_key(request, self._engine.ready().fingerprint))
        if found is None:
            self._require_place(request.owner)
        return found

    async def get(self, owner: str, adaptation_id: str) -> Adaptation:
        """Return an owner's adaptation, of this server or another that uses the same store.

        Raises:
            ApiError: 404 for an unknown one and for another owner's; 503 if only the store could
                tell, and it cannot be used.
        """
        self.require_open()
        adaptation = self._index.get(adaptation_id)
        if adaptation is not None and adaptation.owner != owner:
            adaptation = None
        elif adaptation is None or adaptation.is_expired:
            adaptation = await self._find(adaptation_id)
        elif adaptation.is_elsewhere and not adaptation.status.is_final:
            await self._sharing.look(adaptation)
        elif not await self._is_current(adaptation):
            adaptation = None
        if adaptation is None or adaptation.owner != owner or adaptation.is_expired:
            raise errors.no_adaptation(adaptation_id)
        return adaptation

    def _own(self, owner: str) -> list[Adaptation]:
        return [a for a in self._index.all if a.owner == owner and not a.is_expired]

    async def list(self, owner: str) -> list[Adaptation]:
        """Return an owner's adaptations on all servers that use the store, the newest first."""
        if time.monotonic() - self._synchronised > CONFIRM_SECONDS:
            await self._synchronise()
        return sorted(self._own(owner), key=lambda a: a.created_at, reverse=True)

    async def label(self, owner: str, adaptation_id: str, changes: dict[str, Any]) -> Adaptation:
        """Change fields of an adaptation's label.

        Raises:
            ApiError: it does not exist, or it is stored and the store cannot be used.
        """
        adaptation = await self.get(owner, adaptation_id)
        try:
            label = adaptation.label.model_copy(update=changes)
            await self._storage.label(adaptation, label)
        except StoreError:
            raise store_unavailable() from None
        self._touch(adaptation)
        return adaptation

    async def delete(self, owner: str, adaptation_id: str) -> Adaptation:
        """Cancel an adaptation if it runs, and forget it; requests that use it now go on.

        Raises:
            ApiError: it does not exist, or it is stored and the store cannot be used.
        """
        adaptation = await self.get(owner, adaptation_id)
        if not adaptation.status.is_final:
            self._maker.cancel(adaptation)
        try:
            await self._storage.delete(adaptation)
        except StoreError:
            if adaptation.stored:
                raise store_unavailable() from None
        self._index.forget(adaptation)
        return adaptation

    @asynccontextmanager
    async def use(self, owner: str, adaptation_id: str) -> "AsyncIterator[Kept]":
        """Give the adapted document, and keep it in memory meanwhile; wait until it is ready.

        Raises:
            ApiError: it does not exist, it failed, or it does not fit into memory now.
        """
        adaptation = await self.get(owner, adaptation_id)
        adaptation.users += 1
        self._touch(adaptation)
        try:
            if await adaptation.wait_until_final() is not Status.READY:
                raise errors.adaptation_failed(adaptation_id, adaptation.error)
            async with adaptation.loading:
                document = adaptation.document or await self._load(adaptation)
            yield document
        finally:
            adaptation.users -= 1
            self._touch(adaptation)
            self._room.evict()

    # -- what other servers do ----------------------------------------------------------------

    async def _current(self, key: str) -> Adaptation | None:
        """Return the adaptation that a request with this key joins, unless it was deleted."""
        while (adaptation := self._index.find(key)) is not None:
            if await self._is_current(adaptation):
                return adaptation
        return None

    async def _is_current(self, adaptation: Adaptation) -> bool:
        """Return whether no other server has deleted an adaptation; forget one that was deleted.

        One that is in memory can answer without the store, so a store that fails is no obstacle.
        """
        now = time.monotonic()
        is_recent = now - adaptation.confirmed < CONFIRM_SECONDS
        if is_recent or not adaptation.stored or not self._connection.is_available:
            return True
        if await self._storage.exists(adaptation):
            adaptation.confirmed = now
            return True
        self._index.forget(adaptation)
        return False

    async def _find(self, adaptation_id: str) -> Adaptation | None:
        """Look for an adaptation in the store that is not known, or has expired here."""
        if not self._connection.is_used or ID_PATTERN.fullmatch(adaptation_id) is None:
            return None
        if not self._connection.is_available:
            raise store_unavailable()
        try:
            found = await self._storage.find(adaptation_id)
        except UnreadableEntryError as error:
            raise ApiError(409, f"{error}.", "adaptation_unreadable", param="adaptation") from None
        except StoreError:
            raise store_unavailable() from None
        return None if found is None else self._maker.discover(found)

    # -- memory -------------------------------------------------------------------------------

    async def _load(self, adaptation: Adaptation) -> "Kept":
        self._room.require_memory(adaptation.nbytes)
        try:
            adaptation.document = await self._storage.load(adaptation.id)
        except MissingEntryError:
            self._index.forget(adaptation)
            raise errors.no_adaptation(adaptation.id) from None
        except (DamagedEntryError, UnreadableEntryError) as error:
            self._index.forget(adaptation)
            message = f"The adaptation {adaptation.id!r} is lost: {error}. Adapt again."
            raise ApiError(409, message, "adaptation_lost") from error
        except StoreError:
            raise store_unavailable() from None
        return adaptation.document

    # -- bookkeeping --------------------------------------------------------------------------

    def _touch(self, adaptation: Adaptation) -> None:
        adaptation.touch()
        self._storage.mark_use(adaptation)

    def _forget_document(self, owner: str, key: str) -> None:
        """Drop a document as the base model read it."""
        if self._backend is not None:
            self._backend.forget_document(owner, key)

    def _require_place(self, owner: str) -> None:
        require_place(
            self._own(owner),
            self._index.all,
            max_count=self._settings.max_adaptations,
            max_bytes=self._keyring.quotas_of(owner).adaptation_bytes,
        )


def store_unavailable() -> ApiError:
    """503: the request needs the store, which cannot be used now."""
    return errors.unavailable("The store of adaptations cannot be used now.", "store_unavailable")
