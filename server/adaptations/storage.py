"""The stored adaptations on the event loop: what is written, read, deleted, and found anew."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.connection import Connection
from refine_server.server.adaptations.label import Label
from refine_server.server.adaptations.store.entries import Store, new_data_file
from refine_server.server.adaptations.store.errors import (
    DamagedEntryError,
    MissingEntryError,
    StoreError,
    UnreadableEntryError,
)
from refine_server.server.adaptations.store.leases import Lease
from refine_server.server.adaptations.store.manifest import Manifest, describe_data
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.metrics.declarations import Metrics
from refine_server.ttt.interface.errors import DamagedError
from refine_server.ttt.interface.events import AdaptationStep
from refine_server.ttt.interface.reports import AdaptationReport, Citation, overflow_of

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept

logger = logging.getLogger(__name__)

EXPIRY_GRACE_SECONDS = 60.0
"""An entry is deleted this long after it expired: for markers of its use that are on their way, and
for clocks that differ."""
CLOCK_SECONDS = 1.0
"""By how much later than the own one a recorded use must be to be another server's."""
MARK_SECONDS = 10.0
"""Shortest time between two markers of an adaptation's use."""


class Saved(StrEnum):
    """What became of an adaptation that was to be stored."""

    STORED = "stored"
    UNSAVED = "unsaved"
    """There is no store, or it failed."""
    BY_ANOTHER = "by_another"
    """Another server has stored this adaptation, and what it has stored is what is kept."""
    CANCELLED = "cancelled"
    """It was deleted through another server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAdaptation:
    """An entry of the store."""

    manifest: Manifest
    expires_at: float
    """When it expires unless it is used, in seconds since 1970; infinity if it is pinned."""
    label: Label


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What other servers, or a former process of this one, have changed in the store."""

    found: list[StoredAdaptation | Lease]
    """Adaptations that were not known, stored or being made."""
    gone: list[str]
    """Ids of adaptations that were stored and are not any more."""


class Storage:
    """Writes adaptations to the store and reads them.

    A store that fails never fails an adaptation: what cannot be written stays in memory only.
    """

    def __init__(self, connection: Connection, metrics: Metrics) -> None:
        self._connection, self._metrics = connection, metrics
        self._backend: Backend | None = None
        self._marking: set[asyncio.Task[None]] = set()
        self._ended: set[str] = set()
        """What is listed and was being made, until it was cancelled or failed."""

    def open(self, backend: Backend) -> None:
        """Set the model whose adaptations are stored."""
        self._backend = backend

    # -- one adaptation -----------------------------------------------------------------------

    async def save(self, adaptation: Adaptation, document: "Kept") -> Saved:
        """Write a document, unless another server has done so."""
        backend = self._backend
        if backend is None or not self._connection.is_used:
            return Saved.UNSAVED

        def write() -> Saved:
            store, leases = self._connection.store, self._connection.leases
            data, description = backend.dump(document)
            size, checksum = describe_data(data)
            manifest = Manifest(
                id=adaptation.id,
                owner=adaptation.owner,
                key=adaptation.key,
                created_at=adaptation.created_at,
                expires_at=time.time() + adaptation.ttl_seconds,
                ttl_seconds=adaptation.ttl_seconds,
                fingerprint=backend.fingerprint,
                config=adaptation.config,
                nbytes=document.nbytes,
                description=description,
                data_file=new_data_file(),
                data_bytes=size,
                data_sha256=checksum,
            )
            if adaptation.key is None and adaptation.store_key is not None:
                leases.release_key(adaptation.store_key, adaptation.id)
            if adaptation.label != Label():
                store.write_label(adaptation.id, adaptation.label)
            is_ours = store.save(manifest, data)
            adaptation.stored_bytes = size
            # Who deletes it writes this first and looks for an entry then, so one of both sees it.
            if leases.is_cancelled(adaptation.id):
                store.delete(adaptation.id)
                return Saved.CANCELLED
            return Saved.STORED if is_ours else Saved.BY_ANOTHER

        try:
            return await self._connection.run("save", write, is_bulk=True)
        except StoreError:
            return Saved.UNSAVED

    async def load(self, adaptation_id: str) -> "Kept":
        """Return a stored document.

        Raises:
            MissingEntryError, UnreadableEntryError, DamagedEntryError: it cannot be used.
            StoreError: the store failed.
        """
        backend = self._backend
        if backend is None:
            raise StoreError("the model is not loaded")

        def read() -> "Kept":
            manifest, data = self._connection.store.load(adaptation_id)
            try:
                document = backend.restore(data, manifest.description)
            except DamagedError as error:  # its bytes are as they were written
                raise UnreadableEntryError(
                    f"the stored adaptation cannot be used, as another version of refine-server "
                    f"wrote it: {error}"
                ) from error
            document.require_owner(manifest.owner)
            return document

        return await self._connection.run("load", read, is_bulk=True)

    async def exists(self, adaptation: Adaptation) -> bool:
        """Return whether an adaptation is still stored; true if the store does not answer.

        Its label becomes what another server may have written.
        """

        def look() -> Label | None:
            store = self._connection.store
            return store.label(adaptation.id) if store.exists(adaptation.id) else None

        try:
            found = await self._connection.run("look", look)
        except StoreError:
            return True
        adaptation.label = found or adaptation.label
        return found is not None

    async def label(self, adaptation: Adaptation, label: Label) -> None:
        """Write a label for all servers, if the adaptation is stored.

        Raises:
            StoreError: the store failed.
        """
        if adaptation.stored:
            work = lambda: self._connection.store.write_label(adaptation.id, label)  # noqa: E731
            await self._connection.run("label", work)
        adaptation.label = label

    async def find(self, adaptation_id: str) -> StoredAdaptation | Lease | None:
        """Return an adaptation that another server has stored, or makes.

        Raises:
            UnreadableEntryError: another version of refine-server wrote it.
            StoreError: the store failed.
        """

        def find() -> StoredAdaptation | Lease | None:
            found = self._connection.leases.find(adaptation_id)
            if isinstance(found, Manifest):
                return _dated(self._connection.store, found)
            return found

        try:
            return await self._connection.run("find", find)
        except DamagedEntryError:
            return None

    async def delete(self, adaptation: Adaptation) -> None:
        """Remove an adaptation from the store, for all servers.

        Raises:
            StoreError: the store failed, and has the adaptation still.
        """

        def delete() -> None:
            store, leases = self._connection.store, self._connection.leases
            if not adaptation.stored:  # a server that makes it looks for this
                leases.cancel(adaptation.id)
            if adaptation.store_key is not None:
                leases.release_key(adaptation.store_key, adaptation.id)
            if adaptation.stored or store.exists(adaptation.id):
                store.delete(adaptation.id)

        if self._connection.is_used:
            await self._connection.run("delete", delete)

    # -- time to live -------------------------------------------------------------------------

    async def expire(self, adaptation: Adaptation) -> float | None:
        """Delete an expired adaptation, unless another server uses it.

        Returns:
            Seconds until it expires, negative if it has; None if it is not in the store any more.
        """

        def expire() -> float | None:
            store = self._connection.store
            try:
                left = store.expires_at(store.manifest(adaptation.id)) - time.time()
            except (MissingEntryError, DamagedEntryError):
                return None
            if left > -EXPIRY_GRACE_SECONDS:
                return left
            if adaptation.store_key is not None:
                self._connection.leases.release_key(adaptation.store_key, adaptation.id)
            store.delete(adaptation.id)
            return None

        try:
            return await self._connection.run("expire", expire)
        except StoreError:
            return 0.0

    def mark_use(self, adaptation: Adaptation) -> None:
        """Tell other servers that an adaptation is used, now and then while it is."""
        now = time.monotonic()
        pause = min(MARK_SECONDS, adaptation.ttl_seconds / 4)
        if not adaptation.stored or now - adaptation.marked < pause:
            return
        adaptation.marked = now
        self._marking.add(task := asyncio.create_task(self._mark(adaptation.id)))
        task.add_done_callback(self._marking.discard)

    async def is_used_elsewhere(self, adaptation: Adaptation) -> bool:
        """Return whether another server that shares the store has just used or pinned one.

        Raises:
            StoreError: the store cannot be used.
        """

        def find() -> tuple[bool, float]:
            store = self._connection.store
            return store.label(adaptation.id).pinned, store.last_used(adaptation.id)

        pinned, used = await self._connection.run("find", find)
        if pinned:
            return True
        ago = time.time() - used
        own = time.monotonic() - adaptation.marked
        return ago < 2 * MARK_SECONDS and ago < own - CLOCK_SECONDS

    async def _mark(self, adaptation_id: str) -> None:
        try:
            work = lambda: self._connection.store.touch(adaptation_id, time.time())  # noqa: E731
            await self._connection.run("mark", work)
        except StoreError:
            pass  # counted, and it has expired for other servers only

    # -- all adaptations ----------------------------------------------------------------------

    async def changes(self, known: Collection[str], stored: Collection[str]) -> Changes:
        """Return what has changed in the store, and publish how much it has.

        Args:
            known: ids of all adaptations that this server knows.
            stored: those of them that it takes for stored.

        Raises:
            StoreError: the store failed.
        """

        def compare() -> Changes:
            store, leases = self._connection.store, self._connection.leases
            listed = store.entries()
            found: list[StoredAdaptation | Lease] = [
                _dated(store, manifest) for manifest in store.manifests(listed, known)
            ]
            for entry in listed:
                if entry.is_complete or entry.id in known or entry.id in self._ended:
                    continue
                lease = leases.find(entry.id)
                if lease is None or (isinstance(lease, Lease) and lease.failure is not None):
                    self._ended.add(entry.id)
                elif isinstance(lease, Lease) and lease.is_admitted:
                    found.append(lease)
            self._ended.intersection_update(entry.id for entry in listed)
            there = {entry.id for entry in listed if entry.is_complete}
            # A listing may lag behind: what it does not show is looked for.
            gone = [i for i in stored if i not in there and not store.exists(i)]
            self._publish(store, len(there), sum(entry.nbytes for entry in listed))
            return Changes(found=found, gone=gone)

        return await self._connection.run("list", compare, is_bulk=True)

    def _publish(self, store: Store, complete: int, nbytes: int) -> None:
        unreadable = len(store.unreadable)
        for state, count in (("ready", complete - unreadable), ("unreadable", unreadable)):
            self._metrics.store_entries.labels(state).set(count)
        self._metrics.store_bytes.set(nbytes)


def revive(stored: StoredAdaptation) -> Adaptation | None:
    """Return the adaptation of an entry; None if the entry is unusable."""
    manifest = stored.manifest
    adaptation = Adaptation(
        manifest.id, manifest.owner, manifest.key, manifest.config, manifest.ttl_seconds
    )
    adaptation.admitted.set_result(None)
    return adaptation if fill(adaptation, stored) else None


def fill(adaptation: Adaptation, stored: StoredAdaptation) -> bool:
    """Make an adaptation ready with what an entry tells of it; return whether that could be read.

    Its document stays in the store until it is needed.
    """
    manifest = stored.manifest
    try:
        report = AdaptationReport.model_validate(manifest.description["report"])
        tokens = int(manifest.description["document_tokens"])
        cited = [Citation.model_validate(c) for c in manifest.description.get("citations", ())]
        overflow = overflow_of(manifest.description)
    except (KeyError, TypeError, ValueError) as error:
        logger.error("the stored adaptation %s cannot be used: %r", manifest.id, error)
        return False
    adaptation.created_at, adaptation.label = manifest.created_at, stored.label
    adaptation.report = report
    if adaptation.events:  # somebody may follow it
        for step in report.steps[len(adaptation.steps) :]:
            adaptation.add_event(AdaptationStep(step))
    else:
        adaptation.steps = list(report.steps)
    adaptation.document_tokens, adaptation.nbytes = tokens, manifest.nbytes
    adaptation.citations = tuple(cited)
    adaptation.overflow = overflow
    adaptation.document_key = manifest.description.get("document_key")
    adaptation.stored, adaptation.stored_bytes = True, manifest.data_bytes
    adaptation.set_status(Status.READY)
    adaptation.expire_in(stored.expires_at - time.time())
    return True


def _dated(store: Store, manifest: Manifest) -> StoredAdaptation:
    return StoredAdaptation(
        manifest=manifest,
        expires_at=store.expires_at(manifest),
        label=store.label(manifest.id),
    )
