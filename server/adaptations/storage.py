"""The asynchronous side of the store: adaptations in, adaptations out, failures counted."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.store.entries import Store, new_data_file
from refine_server.server.adaptations.store.errors import StoreError, UnreadableEntryError
from refine_server.server.adaptations.store.files import Files
from refine_server.server.adaptations.store.manifest import Manifest, describe_data
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings, SettingsError
from refine_server.ttt.interface.errors import DamagedError
from refine_server.ttt.interface.reports import AdaptationReport, Citation, overflow_of

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Storage:
    """Runs the store in a thread, with a time limit.

    A store that fails never fails an adaptation: what cannot be written stays in memory only.

    Raises:
        SettingsError: the store cannot be used, and will not be until something is changed: its
            file system is unknown or not installed, or it is a disk that cannot be written.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._url = None if settings.store == "none" else settings.store or default_url()
        if self._url is not None:
            _require_usable(self._url)
        self._timeout = settings.store_timeout_seconds
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "refine-store")
        self._store: Store | None = None
        self._backend: Backend | None = None

    async def open(self, backend: Backend) -> list[tuple[Manifest, float]]:
        """Open the store of a backend's model; return its entries, none if it is unreachable.

        Returns:
            The entries' manifests, and when they expire in seconds since 1970.
        """
        self._backend = backend
        url = self._url
        if url is None:
            return []
        try:
            self._store = store = await self._run(lambda: Store(url, backend.fingerprint))
            return await self._run(lambda: [(m, store.expires_at(m)) for m in store.manifests()])
        except StoreError as error:
            self._report("open", error)
            return []

    async def close(self) -> None:
        """Wait for the write that runs, and drop those that have not begun."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def save(self, adaptation: Adaptation, document: "Kept") -> bool:
        """Write a document; return whether it is stored now."""
        store, backend = self._store, self._backend
        if store is None or backend is None:
            return False

        def write() -> None:
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
            store.save(manifest, data)

        try:
            await self._run(write)
        except StoreError as error:
            self._report("save", error)
            return False
        return True

    async def load(self, adaptation_id: str) -> "Kept":
        """Return a stored document.

        Raises:
            StoreError: the store failed, or the entry does not exist or is damaged.
        """
        store, backend = self._store, self._backend
        if store is None or backend is None:
            raise StoreError("this server has no store")

        def read() -> "Kept":
            manifest, data = store.load(adaptation_id)
            try:
                document = backend.restore(data, manifest.description)
            except DamagedError as error:  # its bytes are as they were written
                raise UnreadableEntryError(
                    f"the stored adaptation cannot be used, as another version of refine-server "
                    f"wrote it: {error}"
                ) from error
            document.require_owner(manifest.owner)
            return document

        try:
            return await self._run(read)
        except StoreError as error:
            self._report("load", error)
            raise

    async def delete(self, adaptation: Adaptation) -> None:
        """Remove a document from the store; a failure is only logged."""
        store = self._store
        if store is None or not adaptation.stored:
            return
        try:
            await self._run(lambda: store.delete(adaptation.id))
        except StoreError as error:
            self._report("delete", error)

    def revive(self, manifest: Manifest, expires_at: float) -> Adaptation | None:
        """Return the adaptation of a stored entry; None if the entry is unusable.

        Args:
            manifest: of the entry.
            expires_at: when it expires, in seconds since 1970.
        """
        try:
            report = AdaptationReport.model_validate(manifest.description["report"])
            tokens = int(manifest.description["document_tokens"])
            cited = [Citation.model_validate(c) for c in manifest.description.get("citations", ())]
            overflow = overflow_of(manifest.description)
        except (KeyError, TypeError, ValueError) as error:
            logger.error("the stored adaptation %s cannot be used: %r", manifest.id, error)
            return None
        owner, config = manifest.owner, manifest.config
        adaptation = Adaptation(manifest.id, owner, manifest.key, config, manifest.ttl_seconds)
        adaptation.created_at = manifest.created_at
        adaptation.report, adaptation.steps = report, list(report.steps)
        adaptation.document_tokens, adaptation.nbytes = tokens, manifest.nbytes
        adaptation.citations = tuple(cited)
        adaptation.overflow = overflow
        adaptation.document_key = manifest.description.get("document_key")
        adaptation.stored = True
        adaptation.admitted.set_result(None)
        adaptation.set_status(Status.READY)
        # The wall clock may have jumped: at most a whole time to live is left.
        left = min(max(expires_at - time.time(), 0.0), manifest.ttl_seconds)
        adaptation.expires = time.monotonic() + left
        return adaptation

    async def _run(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._thread, work)
        except TimeoutError:
            raise StoreError(f"the store took longer than {self._timeout:g} s") from None

    def _report(self, operation: str, error: StoreError) -> None:
        logger.error("%s", error)
        self._metrics.store_errors.labels(operation).inc()


def default_url() -> str:
    """Return the store of a server that was given none: a folder in the cache directory."""
    from refine_server.ttt.models.bundled import cache_directory  # it imports torch

    return (cache_directory() / "adaptations").absolute().as_uri()


def _require_usable(url: str) -> None:
    """Raise SettingsError for a store that cannot be used until something is changed.

    A disk is written to. An object store is not connected to: it may only be away for a while.
    """
    try:
        files = Files(url)
        if files.is_local:
            files.probe()
    except StoreError as error:
        raise SettingsError(
            f"--store (REFINE_STORE): {error}. Change that, choose another store, or keep "
            "adaptations in memory only with --store none"
        ) from None
