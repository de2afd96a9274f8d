"""The event loop's end of a job: its events as they arrive."""

import asyncio
from collections.abc import Callable
from typing import Self

from refine_server.server.engine.events import Accepted, Progress, QueueMoved, RunEvent
from refine_server.server.engine.progress import ProgressTracker
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.engine.scheduling.job import Job
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.events import AdaptationStep, Event, Last

SILENT_SECONDS = 2.0
"""A run that had no event for so long yields its progress."""

Delivered = QueueMoved | Event | Exception
"""What the worker hands to the event loop."""


class Run:
    """Submitted work: an asynchronous iterator of its events.

    The first is ``Accepted``, and the last is a ``Last``. It raises what ended the work early:
    RequestError, or ApiError, also at its deadline.
    """

    def __init__(
        self,
        job: Job,
        accepted: Accepted,
        events: asyncio.Queue[Delivered],
        cancel: Callable[[Job, str], None],
        on_deadline_missed: Callable[[str], None],
        *,
        deadline: float,
        timeout_seconds: float,
    ) -> None:
        self._job, self._events, self._cancel = job, events, cancel
        self._on_deadline_missed = on_deadline_missed
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline  # in the event loop's time
        self._timeout_seconds = timeout_seconds
        self._accepted: Accepted | None = accepted  # until it was yielded
        self._tracker = ProgressTracker(job.estimate, self._loop.time())
        self._has_adapted = False
        self._has_ended = False

    @property
    def id(self) -> str:
        """The id of the work."""
        return self._job.id

    @property
    def document_tokens(self) -> int:
        """Tokens of the document; of the query or the prompts where the work reads none."""
        return self._job.tokens

    @property
    def queue_seconds(self) -> float:
        """Seconds that the work waited for its first turn; zero until then."""
        return self._job.queue_seconds

    @property
    def queue_position(self) -> int:
        """Its place in the queue, from 1 on; 0 where it waits for nothing."""
        return self._job.queue_position

    @property
    def estimate(self) -> Estimate:
        """What the work was expected to cost."""
        return self._job.estimate

    @property
    def steps(self) -> int:
        """The most steps that its adaptation makes; 0 until they begin."""
        return self._tracker.steps

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until its end."""
        return self._tracker.seconds_left(self._loop.time())

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._tracker.progress(self._loop.time())

    def cancel(self, reason: str, error: ApiError) -> None:
        """Stop the work before its next step; the iterator raises ``error``."""
        self._job.deliver(error)  # after the events that are on their way
        self._cancel(self._job, reason)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunEvent:
        if self._has_ended:
            raise StopAsyncIteration
        item = await self._next()
        if isinstance(item, Exception):
            self._has_ended = True
            raise errors.after_adapting(item) if self._has_adapted else item
        self._has_ended = isinstance(item, Last)
        self._has_adapted = self._has_adapted or isinstance(item, AdaptationStep)
        self._tracker.update(item, self._loop.time())
        return item

    async def _next(self) -> RunEvent | Exception:
        if (accepted := self._accepted) is not None:
            self._accepted = None
            return accepted
        until = min(self._loop.time() + SILENT_SECONDS, self._deadline)
        try:
            async with asyncio.timeout_at(until):
                return await self._events.get()
        except TimeoutError:
            if until < self._deadline:
                return self.progress
        self._on_deadline_missed("queued" if self._job.started is None else "running")
        self._cancel(self._job, "timeout")
        return errors.timed_out(self._timeout_seconds)
