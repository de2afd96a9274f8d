"""What the event loop and the worker share: the jobs, behind one lock."""

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from refine_server.server.engine.events import Accepted, QueueMoved
from refine_server.server.engine.scheduling.job import Job, JobStatus
from refine_server.server.engine.scheduling.scheduler import QueueLimits, Scheduler
from refine_server.server.http.errors import ApiError
from refine_server.ttt.batching import Operation

COMPANY_SECONDS = 5.0
"""A job counts as not alone so long after another one ended: who chats sends again."""
IDLE_SECONDS = 0.5
"""Time without work after which the worker gets a turn without jobs."""

Verification = Future[bool]
"""Resolves to whether the base weights are what was loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What the worker does next."""

    verifications: list[Verification]
    """Requests to verify the base weights, all answered by one verification."""
    jobs: list[Job]
    """The jobs of the batch, which may be one that was begun before. A job alone without an
    operation is started, or ended if it was cancelled. Empty where there is nothing to do but to
    answer the verifications, and once when there has been no work for a while."""
    operations: list[Operation[Any]]
    """What the jobs await, in their order; none where there is nothing to run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How much there is to do."""

    waiting: int
    """Jobs that wait to be admitted."""
    waiting_tokens: int
    """Tokens that they read."""
    waiting_seconds: float
    """Estimated seconds of their work."""
    running: int
    """Jobs that take turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What would become of a job if it were submitted now."""

    job: Job
    """Is not in the queue."""
    accepted: Accepted
    """Its place in the queue, and what is expected of it."""
    refusal: ApiError | None = None
    """What would refuse it."""


class JobQueue:
    """The jobs of the engine, from their submission to their end.

    Every method takes the lock, so that any thread may call it; none of them waits for the model
    but ``next_turn``, which is the worker's.
    """

    def __init__(self, limits: QueueLimits, max_batch_size: int) -> None:
        self._scheduler = Scheduler(limits)
        self._max_batch_size = max_batch_size
        self._verifications: list[Verification] = []
        self._refusal: ApiError | None = None
        self._is_stopping = False
        self._is_idle = False
        self._last_company = -math.inf  # when there were several jobs, in monotonic seconds
        # Guards everything above, and the jobs' progress. A thread that holds it may take it again.
        self._changed = threading.Condition(threading.RLock())

    # -- for any thread -----------------------------------------------------------------------

    @property
    def jobs(self) -> list[Job]:
        """All jobs that have not ended."""
        with self._changed:
            return self._scheduler.jobs

    @property
    def waiting(self) -> list[Job]:
        """Jobs that wait to be admitted."""
        with self._changed:
            return list(self._scheduler.waiting)

    @property
    def load(self) -> Load:
        """How much there is to do now."""
        with self._changed:
            waiting = self._scheduler.waiting
            return Load(
                waiting=len(waiting),
                waiting_tokens=sum(job.tokens for job in waiting),
                waiting_seconds=sum(job.estimate.total for job in waiting),
                running=len(self._scheduler.active),
            )

    @property
    def active_jobs(self) -> int:
        """How many jobs take turns."""
        with self._changed:
            return len(self._scheduler.active)

    def has_company(self) -> bool:
        """Return whether there are several jobs, or were a moment ago."""
        with self._changed:
            now = time.monotonic()
            if len(self._scheduler.jobs) > 1:
                self._last_company = now
            return now - self._last_company < COMPANY_SECONDS

    @property
    def active_bytes(self) -> int:
        """Memory that the jobs that take turns take at their peaks, as predicted."""
        with self._changed:
            return self._scheduler.active_bytes

    @property
    def refusal(self) -> ApiError | None:
        """Why no job is accepted any more; None while jobs are accepted."""
        with self._changed:
            return self._refusal

    def cancel(self, job: Job, reason: str) -> None:
        """Stop work on a job before its next operation; do nothing if it has ended."""
        with self._changed:
            if self._scheduler.remove(job):
                job.status, job.reason = JobStatus.CANCELLED, reason
                self._tell_positions()
            elif job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
                job.status, job.reason = JobStatus.CANCELLING, reason

    # -- for the event loop -------------------------------------------------------------------

    def require_place(self, *, reuses_adaptation: bool) -> None:
        """Raise 429 if one more such job cannot wait."""
        with self._changed:
            self._scheduler.require_place(reuses_adaptation=reuses_adaptation)

    def submit(self, job: Job, charge: AbstractContextManager[None]) -> Accepted:
        """Put a job into the queue, inside the context that charges its owner for it.

        Returns:
            Its place in the queue, and what is expected of it.

        Raises:
            ApiError: no job is accepted any more, too much waits, the job would not end in time,
                or the owner's quota is used up.
        """
        with self._changed:
            if self._refusal is not None:
                raise self._refusal
            with charge:
                self._scheduler.add(job, time.monotonic())
            job.queue_position = self._scheduler.positions()[job]
            self._tell_positions()
            self._changed.notify()
            return self._accepted(job, job.queue_position)

    def forecast(self, job: Job) -> Forecast:
        """Say what would become of a job if it were submitted now."""
        with self._changed:
            position = self._scheduler.positions([job])[job]
            try:
                if self._refusal is not None:
                    raise self._refusal
                self._scheduler.require_admission(job, time.monotonic())
            except ApiError as refusal:
                return Forecast(job=job, accepted=self._accepted(job, position), refusal=refusal)
            return Forecast(job=job, accepted=self._accepted(job, position))

    def request_verification(self) -> Verification:
        """Ask the worker to verify the base weights before its next turn.

        Raises:
            ApiError: the worker takes no turns any more, or soon will not.
        """
        verification: Verification = Future()
        with self._changed:
            if self._refusal is not None:
                raise self._refusal
            self._verifications.append(verification)
            self._changed.notify()
        return verification

    def stop_adapting(self, reason: str) -> None:
        """Let the adaptations of all jobs end after their present step; the jobs go on."""
        with self._changed:
            for job in self._scheduler.jobs:
                job.stop_reason = reason

    def close(self, refusal: ApiError) -> bool:
        """Accept no further jobs; return False if none were accepted before."""
        with self._changed:
            if self._refusal is not None:
                return False
            self._refusal = refusal
            return True

    def stop(self) -> None:
        """Let the worker end after its present turn."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def take_verifications(self) -> list[Verification]:
        """Return the verifications that nobody has answered; the caller answers them."""
        with self._changed:
            requested, self._verifications = self._verifications, []
        return [v for v in requested if v.set_running_or_notify_cancel()]

    # -- for the worker -----------------------------------------------------------------------

    def next_turn(self) -> Turn | None:
        """Wait for work and return it; None when the worker is to stop."""
        with self._changed:
            head = self._next_job()
            while head is None and not self._is_stopping and not self._verifications:
                if not self._changed.wait(None if self._is_idle else IDLE_SECONDS):
                    self._is_idle = True
                    break
                head = self._next_job()
            if self._is_stopping:
                return None
            self._is_idle = self._is_idle and head is None
            jobs = [] if head is None else self._scheduler.batch(head, self._max_batch_size)
            running = [job for job in jobs if job.status is not JobStatus.CANCELLING]
            awaited = [self._scheduler.active[job].operation for job in running]
            return Turn(
                verifications=self.take_verifications(),
                jobs=jobs,
                operations=[operation for operation in awaited if operation is not None],
            )

    def start(self, job: Job) -> None:
        """Record that a job's first turn begins."""
        with self._changed:
            job.started = time.monotonic()
            if job.status is JobStatus.QUEUED:
                job.status = JobStatus.RUNNING

    def pause(self, jobs: Sequence[Job], seconds: float) -> None:
        """Charge the jobs of a batch for a piece of it; they run its next piece together."""
        with self._changed:
            for job in jobs:
                self._scheduler.charge(job, seconds)
            self._scheduler.pause(jobs)

    def requeue(self, job: Job, operation: Operation[Any], seconds: float) -> None:
        """Charge a job for a turn, after which it awaits ``operation``."""
        with self._changed:
            self._scheduler.charge(job, seconds)
            self._scheduler.requeue(job, operation)

    def end(self, job: Job, status: JobStatus, reason: str | None, seconds: float) -> float:
        """Charge a job for its last turn and remove it; return the seconds that it worked."""
        with self._changed:
            self._scheduler.charge(job, seconds)
            job.status, job.reason = status, reason
            return self._scheduler.end(job)

    # -- places in the queue ------------------------------------------------------------------

    def _next_job(self) -> Job | None:
        waiting = len(self._scheduler.waiting)
        head = self._scheduler.next()
        if len(self._scheduler.waiting) != waiting:
            self._tell_positions()
        return head

    def _accepted(self, job: Job, position: int) -> Accepted:
        return Accepted(
            queue_position=position,
            estimate=job.estimate,
            seconds_left=self._scheduler.seconds_to_end(job, job.estimate.total),
        )

    def _tell_positions(self) -> None:
        """Tell the jobs whose place in the queue has changed."""
        for job, position in self._scheduler.positions().items():
            if job.queue_position == position:
                continue
            job.queue_position = position
            seconds_left = self._scheduler.seconds_to_end(job, job.estimate.total)
            with suppress(RuntimeError):  # the event loop is closed, so nobody will read it
                job.deliver(QueueMoved(queue_position=position, seconds_left=seconds_left))
