"""The store as the event loop sees it: calls in threads, with a time limit, and their failures."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from refine_server.server.adaptations.store.entries import Store
from refine_server.server.adaptations.store.errors import MissingEntryError, StoreError
from refine_server.server.adaptations.store.files import Files
from refine_server.server.adaptations.store.leases import Leases
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUICK_SECONDS = 5.0
"""Longest time for an operation on small files, which requests wait for."""
QUICK_THREADS = 4


class Connection:
    """The connection to a store, or to none.

    Args:
        settings: has the store's URL and the time limit of long operations.
        metrics: counts failures, and shows whether the store can be used.

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
        self._bulk = ThreadPoolExecutor(1, "refine-store")
        self._quick = ThreadPoolExecutor(QUICK_THREADS, "refine-store-quick")
        self._fingerprint: str | None = None
        self._store: Store | None = None
        self.is_available = True
        """Whether the store could be used when it was last looked at; true where there is none."""
        self.failed = asyncio.Event()
        """Set by an operation that failed, so that the store is looked at soon."""

    @property
    def is_used(self) -> bool:
        """Whether there is a store."""
        return self._url is not None

    @property
    def store(self) -> Store:
        """The store; StoreError before it was first reached, and where there is none."""
        if self._store is None:
            raise StoreError("this server has no store, or has not reached it yet")
        return self._store

    @property
    def leases(self) -> Leases:
        """The leases in the store."""
        return Leases(self.store)

    async def check(self, fingerprint: str) -> None:
        """Find out whether the store can be written and read; connect to it where need be.

        Args:
            fingerprint: hash of the base weights.
        """
        url = self._url
        if url is None:
            return

        def check() -> None:
            self._store = self._store or Store(url, fingerprint)
            self._store.files.probe()

        self.failed.clear()
        was_available = self.is_available
        try:
            await self.run("probe", check, seconds=self._timeout)
            self.is_available = True
        except StoreError:
            self.failed.clear()  # there is nothing more to look at
            self.is_available = False
        if was_available != self.is_available:
            logger.warning("the store %s", "is back" if self.is_available else "is lost")
        self._metrics.store_up.set(self.is_available)

    async def run(
        self,
        operation: str,
        work: Callable[[], T],
        *,
        seconds: float = QUICK_SECONDS,
        is_bulk: bool = False,
    ) -> T:
        """Return what ``work`` returns, which uses the store in a thread.

        Args:
            operation: names it among the failures that are counted.
            work: may block.
            seconds: the longest time to wait for it, unless it is bulk.
            is_bulk: whether it reads or writes tensors. These run one at a time, for as long as
                ``--store-timeout-seconds`` allows.

        Raises:
            StoreError: it failed, or took too long.
        """
        loop = asyncio.get_running_loop()
        limit = self._timeout if is_bulk else min(seconds, self._timeout)
        try:
            async with asyncio.timeout(limit):
                return await loop.run_in_executor(self._bulk if is_bulk else self._quick, work)
        except TimeoutError:
            error = StoreError(f"the store took longer than {limit:g} s")
        except MissingEntryError:
            raise
        except StoreError as failure:
            error = failure
        logger.error("%s", error)
        self._metrics.store_errors.labels(operation).inc()
        if type(error) is StoreError:  # not about a single entry
            self.failed.set()
        raise error

    async def close(self) -> None:
        """Wait for the tensors that are written, and drop what has not begun."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._bulk.shutdown, cancel_futures=True)


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
            files.make_root()
            files.probe()
    except StoreError as error:
        raise SettingsError(
            f"--store (REFINE_STORE): {error}. Change that, choose another store, or keep "
            "adaptations in memory only with --store none"
        ) from None
