"""Who is let in, and whose turn it is.

Pure bookkeeping: no threads and no clock. The engine calls it under its lock.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

from refine_server.server.engine.job import Job
from refine_server.server.http import errors
from refine_server.ttt.batching import Call

LONGEST_WAIT_SECONDS = 3600
SHORTEST_TURN = 1e-3
"""A turn counts for so many seconds at least, so that very short ones alternate."""
PRIORITY_STEP = 1.25
"""One step of priority is worth a quarter of the time, as a step of ``nice`` is."""


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait: jobs, their tokens, and the seconds of work that they are taken to be."""

    active: int
    jobs: int
    tokens: int
    seconds: float


class Scheduler:
    """A bounded queue in front of a few active jobs that take turns.

    Turns go to the job with the least time attained, weighted by its priority and by how many jobs
    its owner has: owners get equal shares, and a decoded token does not wait for the end of a long
    adaptation. The bound on active jobs keeps their fast weights within memory. A question about
    a document that is adapted already is only refused when too many questions wait.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.waiting: list[Job] = []
        self.active: list[Job] = []
        self._served: defaultdict[str, float] = defaultdict(float)  # seconds of work by owner

    @property
    def jobs(self) -> list[Job]:
        """All jobs, the active ones first."""
        return [*self.active, *self.waiting]

    def check_room(self, *, paid_for: bool) -> None:
        """Raise 429 when one more job would wait than may: before anything is spent on it."""
        alike = sum(job.is_paid_for is paid_for for job in self.waiting)
        free = self.limits.active - len(self.active)
        if alike >= self.limits.jobs + free:
            raise errors.queue_full(self.retry_after(0.0))

    def add(self, job: Job) -> None:
        """Let a job wait for its turn; raise 429 when too much waits already."""
        self.check_room(paid_for=job.is_paid_for)
        if not job.is_paid_for and self.waiting:
            waiting = [j for j in self.waiting if not j.is_paid_for]
            seconds = sum(j.remaining for j in waiting) + job.estimate
            tokens = sum(j.tokens for j in waiting) + job.tokens
            if waiting and (tokens > self.limits.tokens or seconds > self.limits.seconds):
                raise errors.queue_full(self.retry_after(seconds - self.limits.seconds))
        if all(other.owner != job.owner for other in self.jobs):
            # Whoever comes (back) starts level with those who are served now.
            self._served[job.owner] = max(self._served[job.owner], self._virtual_time)
        self.waiting.append(job)

    @property
    def _virtual_time(self) -> float:
        """Service that owners had when the jobs of now were admitted (start-time fair queueing)."""
        return min((job.start_tag for job in self.active), default=0.0)

    def next(self) -> Job | None:
        """The job whose turn it is, None when there is none.

        A cancelled job comes first: ending it is quick and frees what it holds.
        """
        while self.waiting and len(self.active) < self.limits.active:
            self._admit(min(self.waiting, key=self._rank))
        if not self.active:
            return None
        cancelled = next((job for job in self.active if job.cancelled is not None), None)
        if cancelled is not None:
            return cancelled
        lead = min(self.active, key=lambda job: job.attained)
        if lead.operation is not None and lead.operation.waits_for_peers:
            return min(self._before(lead), key=lambda job: job.attained, default=lead)
        return lead

    def _before(self, lead: Job) -> list[Job]:
        """Jobs that ``lead`` lets go first, as they may join its batches afterwards.

        They are no more than a turn ahead of it, and so are not served more than without this.
        """
        turn = max(job.longest_turn for job in self.active)
        return [
            job
            for job in self.active
            if (job.operation is None or isinstance(job.operation, Call))
            and job.attained <= lead.attained + turn
        ]

    def companions(self, lead: Job, most: int) -> list[Job]:
        """Up to ``most`` active jobs whose operations can run with that of ``lead``, the first one.

        Those that attained least come first.
        """
        operation = lead.operation
        if operation is None:
            return [lead]
        others = [
            job
            for job in self.active
            if job is not lead
            and job.cancelled is None
            and type(job.operation) is type(operation)
            and job.operation.can_batch_with(operation)
        ]
        others.sort(key=lambda job: job.attained)
        return [lead, *others[: min(most, operation.max_batch_size) - 1]]

    def _rank(self, job: Job) -> tuple[int, float, int]:
        """Priority first, then the owner that got least; ``min`` keeps the order of arrival."""
        own = sum(j.owner == job.owner for j in self.active)
        return job.priority, self._served[job.owner], own

    def _admit(self, job: Job) -> None:
        self.waiting.remove(job)
        # A newcomer starts level with the others: it neither owes nor is owed a turn.
        job.attained = min((j.attained for j in self.active), default=0.0)
        job.start_tag = self._served[job.owner]
        self.active.append(job)

    def charge(self, job: Job, seconds: float) -> None:
        """A turn of a job took so many seconds."""
        job.worked_seconds += seconds
        self._served[job.owner] += seconds
        own = sum(j.owner == job.owner for j in self.active)
        turn = max(seconds, SHORTEST_TURN) * own * PRIORITY_STEP**job.priority
        job.attained += turn
        job.longest_turn = max(job.longest_turn, turn)

    def withdraw(self, job: Job) -> bool:
        """Take back a job that still waits; False when it is active or unknown."""
        if job not in self.waiting:
            return False
        self.waiting.remove(job)
        return True

    def end(self, job: Job) -> None:
        """Forget an active job, and all owners when nothing is left to share."""
        self.active.remove(job)
        if not self.active and not self.waiting:
            self._served.clear()

    def retry_after(self, excess: float) -> int:
        """Seconds until a place is free and ``excess`` seconds of work are done, as estimated."""
        first = min((job.remaining for job in self.active), default=0.0) * len(self.active)
        return min(max(math.ceil(max(first, excess)), 1), LONGEST_WAIT_SECONDS)
