"""One adaptation as a resource: its life from the queue to its end."""

import asyncio
import time
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import TYPE_CHECKING

from refine_server.server.engine.job import Job
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.reports import AdaptationReport, StepReport

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.document import AdaptedDocument


class Status(StrEnum):
    """Where an adaptation is in its life; the last three are for good."""

    QUEUED = "queued"
    ADAPTING = "adapting"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_last(self) -> bool:
        """Whether no other status follows."""
        return self in (Status.READY, Status.FAILED, Status.CANCELLED)


class Adaptation:
    """An adaptation, who owns it, and who waits for it or uses it. Lives on the event loop.

    ``document`` is None while it is not in memory; ``users`` counts those who use it now, which
    keeps it there. Times that decide are monotonic: the wall clock may jump.
    """

    def __init__(
        self, id: str, owner: str, key: str | None, config: AdaptConfig, ttl_seconds: float
    ) -> None:
        self.id = id
        self.owner = owner
        self.key = key
        self.config = config
        self.ttl_seconds = ttl_seconds
        self.created_at = time.time()
        self.status = Status.QUEUED
        self.job: Job | None = None
        self.steps: list[StepReport] = []
        self.report: AdaptationReport | None = None
        self.document_tokens: int | None = None
        self.document: AdaptedDocument | None = None
        self.nbytes = 0
        self.stored = False
        self.error: ApiError | None = None
        self.users = 0
        self.last_used = time.monotonic()
        self.expires: float | None = None
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loading = asyncio.Lock()
        self._changed = asyncio.Event()

    def touch(self) -> None:
        """Somebody asked for it: it lives for another while."""
        self.last_used = time.monotonic()
        if self.status is Status.READY:
            self.expires = self.last_used + self.ttl_seconds

    @property
    def expires_at(self) -> float | None:
        """When it expires, in seconds since 1970; None while it is not ready."""
        return None if self.expires is None else time.time() + self.expires - time.monotonic()

    def change(self, status: Status | None = None) -> None:
        """Tell those who follow that there is something new."""
        if status is not None and not self.status.is_last:
            self.status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def settled(self) -> Status:
        """Wait for the last status."""
        while not self.status.is_last:
            await self._changed.wait()
        return self.status

    async def follow(self) -> AsyncIterator[StepReport]:
        """All steps from the first on, as they are made, up to the last status."""
        told = 0
        while True:
            changed = self._changed
            for step in self.steps[told:]:
                told += 1
                yield step
            if self.status.is_last and told == len(self.steps):
                return
            if changed is self._changed:
                await changed.wait()
