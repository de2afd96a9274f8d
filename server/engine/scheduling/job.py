"""A job: one piece of work on its way through the engine."""

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from refine_server.server.engine.events import QueueMoved
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.ttt.interface.events import Event
from refine_server.ttt.interface.requests import AnswerRequest, AskRequest, CompletionRequest, Work
from refine_server.ttt.programs.encode import EncodedWork


class JobStatus(StrEnum):
    """Where a job is in its life::

    QUEUED ──▶ RUNNING ──▶ COMPLETED | REFUSED | FAILED
      │           │
      ├───────────┴──▶ CANCELLING ──▶ CANCELLED
      └──▶ CANCELLED
    """

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    """Its cancellation was requested; the worker ends it at its next turn."""
    COMPLETED = "completed"
    REFUSED = "refused"
    """Its program found that the request cannot be served as written."""
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in (
            JobStatus.COMPLETED,
            JobStatus.REFUSED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        )


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """Encoded work with an identity and a status.

    Its identity never changes. Its progress is written under the lock of the ``JobQueue`` only; a
    single field may be read without it. What the scheduler, the worker and the observers remember
    of a job is theirs, in objects keyed by the job.
    """

    # -- identity --

    work: EncodedWork
    request_id: str
    """The HTTP request that asked for it, for the log."""
    deliver: Callable[[QueueMoved | Event | Exception], None]
    """Hands an event, or what ended the job early, to the event loop; callable from any thread."""
    priority: int = 0
    """From -10 to 10; lower is more urgent."""
    estimate: Estimate = Estimate()
    nbytes: int = 0
    """Memory that it takes at its peak, as predicted."""
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    submitted: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    """When its last event must have come, in monotonic seconds."""

    # -- progress --

    status: JobStatus = JobStatus.QUEUED
    started: float | None = None
    """When its first turn began."""
    reason: str | None = None
    """Why it was cancelled, or why it ended without an answer."""
    queue_position: int = 0
    """Its place in the queue as it was told last; 0: it waits for nothing."""
    stop_reason: str | None = None
    """Why its adaptation should make no further step; the job itself goes on."""

    @property
    def owner(self) -> str:
        """The owner of the work: the unit of fairness and isolation."""
        return self.work.request.owner

    @property
    def tokens(self) -> int:
        """Tokens that the work reads: of its document, or of its query or prompts."""
        return self.work.tokens

    @property
    def reuses_adaptation(self) -> bool:
        """Whether the work answers from a document that was adapted to before."""
        return reuses_adaptation(self.work.request)

    @property
    def queue_seconds(self) -> float:
        """Seconds from the submission to the first turn; zero before it."""
        return 0.0 if self.started is None else self.started - self.submitted


def reuses_adaptation(work: Work) -> bool:
    """Return whether work answers from a document that was adapted to before."""
    match work:
        case AskRequest():
            return True
        case AnswerRequest():
            return work.kept is not None
        case CompletionRequest():
            return work.adapted is not None or work.kept is not None
        case _:
            return False
