"""The event loop's end of a job: its events as they arrive."""

import asyncio
from collections.abc import Callable
from typing import Self

from refine_server.server.engine.scheduling.job import Job
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.events import AdaptationStep, Event, Last


class Run:
    """Submitted work: an asynchronous iterator of its events, the last of which is a ``Last``.

    It raises what ended the work early: RequestError, or ApiError, also at its deadline.
    """

    def __init__(
        self,
        job: Job,
        events: asyncio.Queue[Event | Exception],
        cancel: Callable[[Job, str], None],
        *,
        deadline: float,
        timeout_seconds: float,
    ) -> None:
        self._job, self._events, self._cancel = job, events, cancel
        self._deadline = deadline  # in the event loop's time
        self._timeout_seconds = timeout_seconds
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

    def cancel(self, reason: str, error: ApiError) -> None:
        """Stop the work before its next step; the iterator raises ``error``."""
        self._job.deliver(error)  # after the events that are on their way
        self._cancel(self._job, reason)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._has_ended:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout_at(self._deadline):
                item = await self._events.get()
        except TimeoutError:
            self._cancel(self._job, "timeout")
            item = errors.timed_out(self._timeout_seconds)
        self._has_ended = isinstance(item, Last | Exception)
        if isinstance(item, Exception):
            raise errors.after_adapting(item) if self._has_adapted else item
        self._has_adapted = self._has_adapted or isinstance(item, AdaptationStep)
        return item
