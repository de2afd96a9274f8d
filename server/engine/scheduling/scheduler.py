"""Admission to the queue, and the order of turns.

Pure bookkeeping: no threads and no clock. ``JobQueue`` calls it under its lock.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from refine_server.server.engine.scheduling.job import Job, JobStatus
from refine_server.server.http import errors
from refine_server.ttt.batching import Call, LongCall, Operation

MAX_RETRY_SECONDS = 3600
MIN_TURN_SECONDS = 1e-3
"""Turns count as at least this long, so that very short ones alternate."""
PRIORITY_STEP = 1.25
"""One step of priority weighs a turn by a quarter, as one step of ``nice`` does."""
HEAD_START_SECONDS = 0.5
"""Seconds that a new job may work before the jobs that are there: enough for a short prompt, so
that its first token waits for the turn in progress alone."""
MAX_HEAD_STARTS = 2.0
"""The most seconds that new jobs may work before the others in a row. They earn as many again while
the others work, so that no stream of new jobs takes more than half of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLimits:
    """How many jobs may be active, and how much may wait beyond them."""

    active: int
    """Jobs that take turns."""
    jobs: int
    """Jobs that wait."""
    seconds: float
    """Estimated seconds of work that waits."""
    nbytes: Callable[[], int] = lambda: sys.maxsize
    """Returns the memory that active jobs may take together."""


@dataclass(kw_only=True, slots=True)
class Slot:
    """What the scheduler keeps of one active job."""

    attained: float
    """Weighted seconds of its turns."""
    start_tag: float
    """Seconds that its owner had been served when it was admitted."""
    head_start: float = 0.0
    """Seconds that it may still work before the others."""
    operation: Operation[Any] | None = None
    """The operation that it awaits; None before its first turn."""
    batch: list[Job] = field(default_factory=list)
    """The jobs of the batch in which its operation was begun, shared by all of them; empty where it
    was not begun."""
    longest_turn: float = 0.0
    """Weighted seconds."""
    worked_seconds: float = 0.0
    """Seconds of its turns."""


class Scheduler:
    """A bounded queue in front of a few active jobs that take turns.

    The next turn goes to the job with the least attained time, weighted by its priority and by the
    number of its owner's jobs: owners get equal shares, and a decoded token does not wait for the
    end of a long adaptation. A new job works before the others for a moment, which it is charged
    for like any other. The limit on active jobs keeps their fast weights within memory. A
    question about a document that was adapted to before is only refused when too many such
    questions wait.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.waiting: list[Job] = []
        self.active: dict[Job, Slot] = {}
        self._served: defaultdict[str, float] = defaultdict(float)  # seconds of work by owner
        self._head_starts = MAX_HEAD_STARTS  # seconds that are left for new jobs

    @property
    def jobs(self) -> list[Job]:
        """All jobs, the active ones first."""
        return [*self.active, *self.waiting]

    @property
    def active_bytes(self) -> int:
        """Memory that the active jobs take at their peaks, as predicted."""
        return sum(job.nbytes for job in self.active)

    # -- admission ----------------------------------------------------------------------------

    def require_place(self, *, reuses_adaptation: bool) -> None:
        """Raise 429 if one more such job cannot wait, before anything is spent on it."""
        waiting = sum(job.reuses_adaptation is reuses_adaptation for job in self.waiting)
        free = self.limits.active - len(self.active)
        if waiting >= self.limits.jobs + free:
            raise errors.queue_full(self.retry_after(0.0))

    def require_admission(self, job: Job, now: float) -> None:
        """Raise what refuses a job now.

        Args:
            job: is new.
            now: the time, in monotonic seconds.

        Raises:
            ApiError: 429, too much waits already, or the job would not end in time.
        """
        self.require_place(reuses_adaptation=job.reuses_adaptation)
        costly = [other for other in self.waiting if not other.reuses_adaptation]
        if costly and not job.reuses_adaptation:
            seconds = sum(other.estimate.total for other in costly) + job.estimate.total
            if seconds > self.limits.seconds:
                raise errors.too_much_work(self.retry_after(seconds - self.limits.seconds))
        late = now + self.seconds_to_end(job, job.estimate.least) - job.deadline
        if self.jobs and late > 0:  # a job that is alone may try
            raise errors.too_late(self.retry_after(late))

    def add(self, job: Job, now: float) -> None:
        """Put a job into the queue, at a time in monotonic seconds.

        Raises:
            ApiError: 429, as ``require_admission``.
        """
        self.require_admission(job, now)
        if all(other.owner != job.owner for other in self.jobs):
            # An owner who comes (back) starts level with those who are being served.
            self._served[job.owner] = max(self._served[job.owner], self._virtual_time)
        self.waiting.append(job)

    def remove(self, job: Job) -> bool:
        """Remove a job that still waits; return False if it is active or unknown."""
        if job not in self.waiting:
            return False
        self.waiting.remove(job)
        return True

    def retry_after(self, excess: float) -> int:
        """Estimate the seconds until a place is free and ``excess`` seconds of work are done."""
        first = min(map(self._remaining, self.active), default=0.0) * len(self.active)
        return min(max(math.ceil(max(first, excess)), 1), MAX_RETRY_SECONDS)

    def _remaining(self, job: Job) -> float:
        """Estimate the seconds of work that are left to do for a job."""
        if job.status is JobStatus.CANCELLING:
            return 0.0
        slot = self.active.get(job)
        return max(job.estimate.total - (slot.worked_seconds if slot else 0.0), 0.0)

    def seconds_to_end(self, job: Job, own: float) -> float:
        """Estimate the seconds until a job that has not begun would end.

        All take turns, so each of the others takes as much time as the job itself, or what it
        needs to end.

        Args:
            job: waits, or may be added.
            own: seconds of its own work.
        """
        others = (other for other in self.jobs if other is not job)
        return own + sum(min(self._remaining(other), own) for other in others)

    def positions(self, new: Sequence[Job] = ()) -> dict[Job, int]:
        """Return each job's place in the queue; 0 for one that is active or that has a place.

        Args:
            new: jobs that might be added.
        """
        free = self.limits.active - len(self.active)
        in_line = sorted([*self.waiting, *new], key=self._admission_order)
        places = {job: max(at - free, 0) for at, job in enumerate(in_line, start=1)}
        return dict.fromkeys(self.active, 0) | places

    @property
    def _virtual_time(self) -> float:
        """Service that owners had when the active jobs were admitted (start-time fair queueing)."""
        return min((slot.start_tag for slot in self.active.values()), default=0.0)

    def _fits(self, job: Job) -> bool:
        """Return whether there is memory for a job beside the active ones; alone it may try."""
        return not self.active or self.active_bytes + job.nbytes <= self.limits.nbytes()

    def _admit(self, job: Job) -> None:
        self.waiting.remove(job)
        # A new job starts level with the others: it neither owes nor is owed a turn.
        attained = min((slot.attained for slot in self.active.values()), default=0.0)
        self.active[job] = Slot(
            attained=attained,
            start_tag=self._served[job.owner],
            head_start=HEAD_START_SECONDS if job.priority <= 0 else 0.0,
        )

    def _admission_order(self, job: Job) -> tuple[int, float, int, float]:
        """Priority first, then the owner served least, then the earliest deadline."""
        own = sum(other.owner == job.owner for other in self.active)
        return job.priority, self._served[job.owner], own, job.deadline

    # -- turns --------------------------------------------------------------------------------

    def next(self) -> Job | None:
        """Admit what there are places for; return the job whose turn it is, None if there is none.

        A cancelled job comes first: ending it is quick and frees what it holds.
        """
        while len(self.active) < self.limits.active:
            fitting = [job for job in self.waiting if self._fits(job)]
            if not fitting:
                break
            self._admit(min(fitting, key=self._admission_order))
        if not self.active:
            return None
        for job in self.active:
            if job.status is JobStatus.CANCELLING:
                return job
        head = min(self.active, key=self._turn_order)
        slot = self.active[head]
        if slot.operation is not None and slot.operation.waits_for_peers and not slot.batch:
            return min(self._future_peers(head), key=self._attained, default=head)
        return head

    def batch(self, head: Job, max_batch_size: int) -> list[Job]:
        """Return ``head`` and the active jobs whose operations can run in one batch with its own.

        Those with the least attained time come first. A batch that was begun stays as it is, but
        for the jobs that ended. A job that was cancelled is alone.
        """
        operation, begun = self.active[head].operation, self.active[head].batch
        if begun and head.status is not JobStatus.CANCELLING:
            return list(begun)
        if operation is None or head.status is JobStatus.CANCELLING:
            return [head]
        peers = [
            job
            for job, slot in self.active.items()
            if job is not head
            and job.status is not JobStatus.CANCELLING
            and not slot.batch
            and type(slot.operation) is type(operation)
            and slot.operation.can_batch_with(operation)
        ]
        peers.sort(key=self._attained)
        return [head, *peers[: min(max_batch_size, operation.max_batch_size) - 1]]

    def pause(self, jobs: Sequence[Job]) -> None:
        """Keep the jobs of a batch together until it has ended: a piece of it was run."""
        batch = list(jobs)
        for job in jobs:
            self.active[job].batch = batch

    def requeue(self, job: Job, operation: Operation[Any]) -> None:
        """Let a job, whose operation has ended, await the next one."""
        self.active[job].operation, self.active[job].batch = operation, []

    def charge(self, job: Job, seconds: float) -> None:
        """Account for a turn of a job that took ``seconds``."""
        slot = self.active[job]
        slot.worked_seconds += seconds
        self._served[job.owner] += seconds
        earned = -seconds if slot.head_start > 0 else seconds
        self._head_starts = min(self._head_starts + earned, MAX_HEAD_STARTS)
        slot.head_start = max(slot.head_start - seconds, 0.0)
        own = sum(other.owner == job.owner for other in self.active)
        is_start = slot.operation is None  # the program ran to its first operation, which is quick
        turn = seconds if is_start else max(seconds, MIN_TURN_SECONDS)
        turn *= own * PRIORITY_STEP**job.priority
        slot.attained += turn
        slot.longest_turn = max(slot.longest_turn, turn)

    def end(self, job: Job) -> float:
        """Remove an active job and return the seconds that it worked.

        The owners' shares start anew when no job is left.
        """
        slot = self.active.pop(job)
        if slot.batch:
            slot.batch.remove(job)
        if not self.jobs:
            self._served.clear()
        return slot.worked_seconds

    def _attained(self, job: Job) -> float:
        return self.active[job].attained

    def _turn_order(self, job: Job) -> tuple[bool, float]:
        """Jobs with a head start first, as long as any is left; then the least attained time."""
        slot = self.active[job]
        is_new = slot.head_start > 0 and self._head_starts > 0
        return not is_new, slot.attained

    def _future_peers(self, head: Job) -> list[Job]:
        """Return jobs that ``head`` lets go first, as they may join its batches afterwards.

        They are at most one turn ahead of it, so they are served no more than without this rule.
        """
        turn = max(slot.longest_turn for slot in self.active.values())
        limit = self.active[head].attained + turn
        return [
            job
            for job, slot in self.active.items()
            if (slot.operation is None or isinstance(slot.operation, Call | LongCall))
            and slot.attained <= limit
        ]
