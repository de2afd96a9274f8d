"""One piece of work on its way through the engine."""

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

from refine_server.ttt.batching import Operation, Program
from refine_server.ttt.interface.events import Event
from refine_server.ttt.interface.requests import AskRequest, CompletionRequest, Work

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.programs.encode import EncodedWork


class Job:
    """Work, the coroutine that does it, and the inbox that its events arrive in.

    Made on the event loop, which reads the inbox. Everything else but ``cancelled`` and
    ``stop_reason`` belongs to the engine's thread once the job is submitted.

    Args:
        work: what to do.
        request_id: of the HTTP request that asked for it.
        priority: lower goes first; -10 to 10.
        timeout_seconds: longest time from now to the last event.
    """

    def __init__(
        self, work: Work, request_id: str, timeout_seconds: float, priority: int = 0
    ) -> None:
        self.id = secrets.token_hex(16)
        self.work = work
        self.request_id = request_id
        self.priority = priority
        self._loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.submitted = time.monotonic()
        self.timeout_seconds = timeout_seconds
        self.deadline = self._loop.time() + timeout_seconds
        self.cancelled: str | None = None
        self.stop_reason: str | None = None
        self.encoded: EncodedWork | None = None
        self.program: Program[None] | None = None
        self.operation: Operation[Any] | None = None  # what the program awaits
        self.tokens = 0
        self.estimate = 0.0
        self.attained = 0.0  # the scheduler's: weighted seconds of turns
        self.longest_turn = 0.0  # of them
        self.start_tag = 0.0  # and its owner's service when it was admitted
        self.queue_seconds = 0.0
        self.worked_seconds = 0.0
        self.last_token: float | None = None
        self.has_adapted = False

    @property
    def owner(self) -> str:
        """Whose work it is: what fairness and isolation go by."""
        return self.work.owner

    @property
    def is_paid_for(self) -> bool:
        """Whether an adaptation was paid for before: such work is not shed for its cost."""
        match self.work:
            case AskRequest():
                return True
            case CompletionRequest():
                return self.work.adapted is not None
            case _:
                return False

    @property
    def remaining(self) -> float:
        """Estimated seconds of work that are left."""
        return max(self.estimate - self.worked_seconds, 0.0)

    def deliver(self, item: Event | Exception) -> None:
        """Put an event, or what ended the job early, into the inbox; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody will read this
            self.cancelled = "disconnect"

    def close(self) -> None:
        """Free everything that the program holds."""
        program, self.program, self.operation = self.program, None, None
        if program is not None:
            program.close()
