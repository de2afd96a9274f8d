"""Whose turn it is: first in, first admitted into a few active jobs that take turns.

Pure bookkeeping: no threads and no clock. The engine calls it under its lock.
"""

import math
from collections import deque

from refine_server.server import errors
from refine_server.server.jobs import Job

FIRST_GUESS_SECONDS = 10.0
"""What a job is taken to cost before one has ended."""
LONGEST_WAIT_SECONDS = 3600


class Scheduler:
    """A bounded queue in front of ``max_active`` jobs that take turns.

    Taking turns keeps a short job from waiting for the end of a long one; the bound on active jobs
    keeps their copies of the fast weights within memory.
    """

    def __init__(self, max_active: int, max_queue: int) -> None:
        self.max_active = max_active
        self.max_queue = max_queue
        self.waiting: deque[Job] = deque()
        self.active: deque[Job] = deque()
        self._recent_seconds: deque[float] = deque(maxlen=32)

    @property
    def jobs(self) -> list[Job]:
        """All jobs, the active ones first."""
        return [*self.active, *self.waiting]

    def check_room(self) -> None:
        """Raise 429 when one more job would wait than may."""
        if len(self.active) + len(self.waiting) >= self.max_active + self.max_queue:
            raise errors.queue_full(self.retry_after())

    def add(self, job: Job) -> None:
        """Let a job wait for its turn; raises 429 when the queue is full."""
        self.check_room()
        self.waiting.append(job)

    def next(self) -> Job | None:
        """The job whose turn it is, None when there is none.

        A cancelled job comes first: ending it is quick and frees what it holds.
        """
        while self.waiting and len(self.active) < self.max_active:
            self.active.append(self.waiting.popleft())
        if not self.active:
            return None
        cancelled = next((job for job in self.active if job.cancelled is not None), None)
        if cancelled is not None:
            return cancelled
        self.active.rotate(-1)
        return self.active[-1]

    def withdraw(self, job: Job) -> bool:
        """Take back a job that still waits; False when it is active or unknown."""
        if job not in self.waiting:
            return False
        self.waiting.remove(job)
        return True

    def end(self, job: Job, *, completed: bool) -> None:
        """Forget an active job; remember what it cost when it ran to its end."""
        self.active.remove(job)
        if completed:
            self._recent_seconds.append(job.worked_seconds)

    def retry_after(self) -> int:
        """Seconds until the present jobs are done, going by what recent ones took."""
        recent = self._recent_seconds
        mean = sum(recent) / len(recent) if recent else FIRST_GUESS_SECONDS
        ahead = len(self.active) + len(self.waiting)
        return min(max(math.ceil(mean * ahead), 1), LONGEST_WAIT_SECONDS)
