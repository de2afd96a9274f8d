"""Adaptations that several servers are asked for: one makes them, the others wait for it."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.connection import Connection
from refine_server.server.adaptations.storage import Storage, StoredAdaptation, fill
from refine_server.server.adaptations.store.errors import StoreError
from refine_server.server.adaptations.store.leases import (
    BEAT_SECONDS,
    LEASE_SECONDS,
    Failure,
    Lease,
)
from refine_server.server.adaptations.store.manifest import Manifest
from refine_server.server.http.errors import ApiError

POLL_SECONDS = 0.5
"""Time between two looks at an adaptation that another server makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Who makes an adaptation."""

    id: str
    """The id under which all servers know it."""
    lease: Lease | None = None
    """This server's, or another's; None for one that is stored, or that is not shared."""
    is_ours: bool = False
    """Whether this server is to make it."""


class _Held:
    """A lease that this server holds, and the task that renews it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        """Set where it has to be written before its time, and at its end."""
        self.has_ended = False


class Sharing:
    """This server among those that use the same store.

    Args:
        connection: the store.
        storage: looks for what other servers have stored.
    """

    def __init__(self, connection: Connection, storage: Storage) -> None:
        self._connection, self._storage = connection, storage
        self._holder = secrets.token_hex(8)
        self._held: dict[str, _Held] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def claim(self, adaptation: Adaptation, left: Lease | None = None) -> Claim:
        """Find out who makes an adaptation, or begin to make it for all servers.

        Without a store that can be used, this server makes it for itself.

        Args:
            adaptation: a new one.
            left: the lease of a server that has stopped, to take over from.
        """
        alone = Claim(id=adaptation.id, is_ours=True)
        key = adaptation.store_key
        if key is None or not (self._connection.is_used and self._connection.is_available):
            return alone
        wanted = Lease(
            id=adaptation.id,
            owner=adaptation.owner,
            key=key,
            config=adaptation.config,
            created_at=adaptation.created_at,
            ttl_seconds=adaptation.ttl_seconds,
            holder=self._holder,
        )

        def claim() -> Lease | Manifest:
            leases = self._connection.leases
            taken = None if left is None else leases.take_over(left, wanted)
            return taken or leases.claim(wanted)

        claiming = asyncio.create_task(self._connection.run("claim", claim))
        try:
            found = await asyncio.shield(claiming)
        except asyncio.CancelledError:  # nobody waits for it any more
            claiming.add_done_callback(self._drop_claimed)
            raise
        except StoreError:
            return alone
        if isinstance(found, Manifest):
            return Claim(id=found.id)
        return Claim(id=found.id, lease=found, is_ours=self.is_own(found))

    @contextlib.asynccontextmanager
    async def holding(self, lease: Lease | None, cancel: Callable[[], None]) -> AsyncIterator[None]:
        """Renew a lease while its adaptation is made.

        Args:
            lease: this server's; None for an adaptation that is not shared.
            cancel: called when the adaptation is deleted through another server.
        """
        if lease is None:
            yield
            return
        held = _Held(lease)
        held.task = asyncio.create_task(self._renew(held, cancel))
        self._held[lease.id] = held
        try:
            yield
        finally:
            held.has_ended = True
            held.changed.set()

    def admit(self, lease: Lease | None) -> None:
        """Tell other servers that the work of an adaptation was accepted."""
        held = None if lease is None else self._held.get(lease.id)
        if held is not None:
            held.lease = held.lease.model_copy(update={"is_admitted": True})
            held.changed.set()

    def end(self, lease: Lease | None, failure: ApiError | None = None) -> None:
        """Give a lease up: the adaptation is stored, or it failed."""
        if lease is None:
            return
        told = None
        if failure is not None:
            detail = failure.body.error
            told = Failure(
                status=failure.status_code,
                message=detail.message,
                code=detail.code,
                param=detail.param,
            )
        self._give_up(lease, lambda: self._connection.leases.end(lease, told))

    def drop(self, lease: Lease | None) -> None:
        """Give a lease up of which nothing came; servers that wait for it begin anew."""
        if lease is not None:
            self._give_up(lease, lambda: self._connection.leases.drop(lease))

    async def follow(self, adaptation: Adaptation) -> StoredAdaptation | ApiError | Lease | None:
        """Wait for an adaptation that another server makes.

        Returns:
            What it has stored; what failed there; its lease, if it has stopped; or None, if it has
            given the adaptation up, or it was deleted: its status is then cancelled.
        """
        last: Lease | None = None
        since = time.monotonic()
        while True:
            if last is not None:
                await asyncio.sleep(POLL_SECONDS)
            try:
                found = await self._storage.find(adaptation.id)
                if found is None and await self._is_cancelled(adaptation.id):
                    adaptation.set_status(Status.CANCELLED)
            except StoreError:  # nothing can be told of the other server
                since = time.monotonic()
                await asyncio.sleep(POLL_SECONDS)
                continue
            if not isinstance(found, Lease):
                return found
            if found.failure is not None:
                told = found.failure
                adaptation.join()
                return ApiError(told.status, told.message, told.code, param=told.param)
            if found.is_admitted:
                adaptation.join()
                adaptation.set_status(Status.ADAPTING)
            if last is None or (found.term, found.beat) != (last.term, last.beat):
                last, since = found, time.monotonic()
            elif time.monotonic() - since > LEASE_SECONDS:
                return found

    def is_own(self, lease: Lease) -> bool:
        """Return whether this server holds a lease, or held it."""
        return lease.holder == self._holder

    async def look(self, adaptation: Adaptation) -> None:
        """Look now whether another server has stored an adaptation that this one waits for."""
        with contextlib.suppress(StoreError):
            found = await self._storage.find(adaptation.id)
            if isinstance(found, StoredAdaptation):
                fill(adaptation, found)

    async def close(self) -> None:
        """Wait until the leases that were given up are."""
        if self._ending:
            await asyncio.wait(self._ending)

    async def _is_cancelled(self, adaptation_id: str) -> bool:
        leases = self._connection.leases
        return await self._connection.run("find", lambda: leases.is_cancelled(adaptation_id))

    async def _renew(self, held: "_Held", cancel: Callable[[], None]) -> None:
        leases = self._connection.leases
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await held.changed.wait()
            if held.has_ended:
                return
            held.changed.clear()
            held.lease = held.lease.renewed()
            try:
                await self._connection.run("renew", partial(leases.write, held.lease))
                if await self._is_cancelled(held.lease.id):
                    cancel()
            except StoreError:
                continue

    def _drop_claimed(self, claiming: "asyncio.Task[Lease | Manifest]") -> None:
        if claiming.cancelled() or claiming.exception() is not None:
            return
        found = claiming.result()
        if isinstance(found, Lease) and self.is_own(found):
            self.drop(found)

    def _give_up(self, lease: Lease, work: Callable[[], None]) -> None:
        async def give_up() -> None:
            held = self._held.pop(lease.id, None)
            if held is not None and held.task is not None:
                await asyncio.wait([held.task])  # its last write must not come after this one
            try:
                await self._connection.run("end", work)
            except StoreError:
                return  # counted; other servers will see that the lease is not renewed

        self._ending.add(task := asyncio.create_task(give_up()))
        task.add_done_callback(self._ending.discard)


def adaptation_elsewhere(lease: Lease) -> Adaptation:
    """Return the adaptation that another server makes, as this one shows it."""
    adaptation = Adaptation(lease.id, lease.owner, lease.key, lease.config, lease.ttl_seconds)
    adaptation.created_at = lease.created_at
    adaptation.is_elsewhere = True
    adaptation.join()
    adaptation.set_status(Status.ADAPTING)
    return adaptation
