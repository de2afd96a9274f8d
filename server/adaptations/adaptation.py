"""One adaptation as a resource: its life from the queue to its end."""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from refine_server.server.adaptations.label import Label
from refine_server.server.engine.events import Accepted, RunEvent
from refine_server.server.engine.run import SILENT_SECONDS, Run
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.events import AdaptationStep, DocumentTraced
from refine_server.ttt.interface.reports import (
    AdaptationReport,
    Citation,
    Overflow,
    StepReport,
)
from refine_server.ttt.interface.requests import AdaptRequest

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept


def request_key(request: AdaptRequest, fingerprint: str) -> str:
    """Return a hash that is equal for requests of one owner with bitwise equal results.

    Args:
        request: the document, how to adapt to it, and what for.
        fingerprint: the base weights.
    """
    evidence = request.evidence and request.evidence.model_dump(mode="json")
    aim = [list(request.queries), evidence]
    adapt = request.adapt.model_dump(mode="json")
    parts = [fingerprint, request.owner, adapt, request.on_overflow, aim]
    if request.pages:  # citations name them
        parts.append(list(map(str, request.pages)))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    # The document as it is: to escape a long one as JSON would hold up the event loop.
    digest.update(b"\0" + request.document.encode())
    return digest.hexdigest()


class Status(StrEnum):
    """State of an adaptation; the last three are final."""

    QUEUED = "queued"
    ADAPTING = "adapting"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether no other status follows."""
        return self in (Status.READY, Status.FAILED, Status.CANCELLED)


class Adaptation:
    """An adaptation, its owner, and who waits for it or uses it. Lives on the event loop.

    Times that decide anything are monotonic, as the wall clock may jump.

    Args:
        id: as ``ids.new_id`` makes it.
        owner: the only one who may use it.
        key: as ``request_key`` makes it; None if no other request may join it.
        config: how it was asked to adapt.
        ttl_seconds: how long it is kept after its last use.
    """

    def __init__(
        self, id: str, owner: str, key: str | None, config: AdaptConfig, ttl_seconds: float
    ) -> None:
        self.id = id
        self.owner = owner
        self.key = key
        self.store_key = key
        """Its key in the store, which it keeps when no other request may join it any more."""
        self.config = config
        self.ttl_seconds = ttl_seconds
        self.label = Label()
        self.created_at = time.time()
        """Seconds since 1970."""

        # The work
        self.status = Status.QUEUED
        self.task: asyncio.Task[None] | None = None
        """Follows the work on the event loop, here or on another server; None for one that was
        stored by another process."""
        self.run: Run | None = None
        """The work; None before it is admitted and after it has ended."""
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Resolves when the work is in the queue, or to what refused it."""
        self.work: AbstractAsyncContextManager[Run] | None = None
        """Makes it, where this server can; None for one that another process makes or has made."""
        self.is_elsewhere = False
        """Whether another server makes it."""
        self.twin: Adaptation | None = None
        """The same adaptation, which another server makes or has stored, in place of this one."""
        self.joined = 0
        """Requests that wait for the admission."""
        self.events: list[RunEvent] = []
        """What was told of the work so far; empty for one that another process made."""
        self.steps: list[StepReport] = []
        self.estimate: Estimate | None = None
        """What the work was expected to cost; None for one that another process made."""
        self.error: ApiError | None = None
        self._changed = asyncio.Event()

        # The result
        self.report: AdaptationReport | None = None
        self.citations: tuple[Citation, ...] = ()
        """The evidence that it was aimed at."""
        self.document_tokens: int | None = None
        self.overflow: Overflow | None = None
        self.document_key: str | None = None
        """Tells its document from the owner's others that are kept as the base model reads them;
        None for one that has a state of its own, and until it is read."""
        self.document: Kept | None = None
        """None while it is not in memory."""
        self.nbytes = 0
        self.stored = False
        self.stored_bytes = 0
        """Disk space of its tensors in the store."""
        self.confirmed = -math.inf
        """When it was last known to be in the store, in monotonic seconds."""
        self.marked = -math.inf
        """When other servers were last told of its use, in monotonic seconds."""
        self.users = 0
        """Requests that use the document now, which keeps it in memory."""
        self.last_used = time.monotonic()
        self.expires: float | None = None
        """In monotonic seconds; None while it has no final status."""
        self.loading = asyncio.Lock()

    @property
    def is_pinned(self) -> bool:
        """Whether it is kept until it is deleted; one that has failed is not."""
        return self.label.pinned and self.status not in (Status.FAILED, Status.CANCELLED)

    def touch(self) -> None:
        """Record a use, so that its time to live starts anew."""
        self.last_used = time.monotonic()
        if self.status is Status.READY:
            self.expires = self.last_used + self.ttl_seconds

    def expire_in(self, seconds: float) -> None:
        """Set what is left of its time to live; the wall clock may have jumped, so all at most."""
        self.expires = time.monotonic() + min(max(seconds, 0.0), self.ttl_seconds)

    @property
    def expires_at(self) -> float | None:
        """When it expires, in seconds since 1970; None before its final status, and if pinned."""
        if self.expires is None or self.is_pinned:
            return None
        return time.time() + self.expires - time.monotonic()

    @property
    def is_expired(self) -> bool:
        """Whether its time to live is over and it is neither in use nor pinned."""
        is_kept = self.users or self.is_pinned
        return self.expires is not None and not is_kept and time.monotonic() >= self.expires

    def admit(self, run: Run) -> None:
        """Record that its work is in the queue."""
        self.run, self.estimate = run, run.estimate
        self.document_tokens = run.document_tokens
        self.join()

    def join(self) -> None:
        """Record that it is under way, here or on another server."""
        if not self.admitted.done():
            self.admitted.set_result(None)

    def refuse(self, error: Exception) -> None:
        """Give ``error`` to those who wait for the admission; do nothing after it."""
        if not self.admitted.done():
            self.admitted.set_exception(error)
            self.admitted.exception()  # marks it as retrieved, as there may be no waiting task

    @property
    def queue_position(self) -> int:
        """Its place in the queue, from 1 on; 0 where it waits for nothing."""
        return 0 if self.run is None else self.run.queue_position

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until it has ended; None before its work is admitted."""
        if self.status.is_final:
            return 0.0
        return None if self.run is None else self.run.seconds_left

    def add_event(self, event: RunEvent) -> None:
        """Record what its work tells, and wake up those who follow."""
        self.events.append(event)
        if isinstance(event, AdaptationStep):
            self.steps.append(event.report.without_trace())
        self._notify()

    def forget_traces(self) -> None:
        """Drop what a trace told of the work, which has ended."""
        self.events = [
            AdaptationStep(event.report.without_trace())
            if isinstance(event, AdaptationStep)
            else event
            for event in self.events
            if not isinstance(event, DocumentTraced)
        ]

    def set_status(self, status: Status) -> None:
        """Change the status, unless it is final, and wake up those who follow."""
        if not self.status.is_final:
            self.status = status
        self._notify()

    def fail(self, error: ApiError) -> None:
        """Record that its work ended with an error."""
        self.error = error
        self.expires = time.monotonic() + self.ttl_seconds
        self.set_status(Status.FAILED)

    async def wait_until_final(self) -> Status:
        """Wait for the final status."""
        while not self.status.is_final:
            await self._changed.wait()
        return self.status

    async def follow(self) -> AsyncIterator[RunEvent]:
        """Yield what its work tells, from its beginning on, until the status is final.

        Where nothing happens for a while, its progress is told.
        """
        if self.status.is_final and not self.events:
            yield Accepted(queue_position=self.queue_position, estimate=None, seconds_left=None)
            for step in self.steps:
                yield AdaptationStep(step)
        sent = 0
        while True:
            changed = self._changed
            for event in self.events[sent:]:
                sent += 1
                yield event
            if self.status.is_final and sent >= len(self.events):
                return
            if changed is not self._changed:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(SILENT_SECONDS):
                    await changed.wait()
            if changed is self._changed and self.run is not None:
                yield self.run.progress

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
