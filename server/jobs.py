"""One request on its way through the engine."""

import asyncio
import secrets
import time
from collections.abc import Generator, Iterator

from refine_server.ttt.types import AnswerRequest, Event


class Job:
    """A request, the generator that works on it, and the inbox that its events arrive in.

    Made on the event loop, which reads the inbox. Everything else but ``cancelled`` belongs to the
    engine's thread once the job is submitted.
    """

    def __init__(self, request: AnswerRequest, request_id: str, timeout_seconds: float) -> None:
        self.id = secrets.token_hex(16)
        self.request = request
        self.request_id = request_id
        self._loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.submitted = time.monotonic()
        self.deadline = self._loop.time() + timeout_seconds
        self.cancelled: str | None = None
        self.generator: Iterator[Event] | None = None
        self.queue_seconds = 0.0
        self.worked_seconds = 0.0
        self.last_token: float | None = None

    def deliver(self, item: Event | Exception) -> None:
        """Put an event, or what ended the job early, into the inbox; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody will read this
            self.cancelled = "disconnect"

    def close(self) -> None:
        """Free everything that the generator holds."""
        generator, self.generator = self.generator, None
        if isinstance(generator, Generator):
            generator.close()
