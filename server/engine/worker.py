"""The worker: everything that runs on the thread that owns the model."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.backend.self_check import self_check, warm_up
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job, JobStatus
from refine_server.server.engine.scheduling.job_queue import JobQueue, Turn, Verification
from refine_server.server.engine.scheduling.step_deadline import StepDeadline
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.ttt.batching import Batch, Operation, Program, resume
from refine_server.ttt.interface.errors import IsolationError, RequestError
from refine_server.ttt.interface.events import Event
from refine_server.ttt.interface.requests import PromptForm

logger = logging.getLogger(__name__)

PROMPT_FORMS: dict[PromptForm, str] = {
    "chat": "the tokenizer's chat template",
    "plain": "plain text, without a chat template",
}
"""What the log says about how prompts are written."""

WASTE_REASONS = {JobStatus.REFUSED: "refused", JobStatus.FAILED: "error"}


class Worker:
    """Opens a backend, then runs the jobs' programs on it, turn by turn.

    ``run`` is the body of the thread. Other threads may read ``opened``, ``failure``,
    ``turn_began`` and ``busy_seconds``; everything else belongs to the thread.

    Args:
        queue: gives turns, and takes back the jobs that await their next operation.
        observers: are notified of what happens.
    """

    def __init__(self, queue: JobQueue, observers: Sequence[EngineObserver]) -> None:
        self.opened: Future[Backend] = Future()
        """Resolves to the backend when it has passed its self-check."""
        self.opened.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
        self.failure: ApiError | None = None
        """Why the thread died."""
        self.turn_began: float | None = None
        """When the present turn began, in monotonic seconds; None between turns."""
        self.busy_seconds = 0.0
        """Seconds of all turns that have ended."""
        self._queue = queue
        self._observers = observers
        self._programs: dict[Job, Program[None]] = {}
        self._begun: dict[Job, tuple[Batch, Operation[Any]]] = {}
        """Batches of which a piece was run, and the jobs' own operations in them."""
        self._backend: Backend

    def run(self, open_backend: Callable[[], Backend]) -> None:
        """Open the backend and work until the queue stops, or until isolation is broken."""
        if not self._open(open_backend):
            return
        try:
            while self.step():
                pass
        except IsolationError as error:
            logger.critical(
                "an isolation check failed, the server serves no more requests: %s", error
            )
            for observer in self._observers:
                observer.on_isolation_violated()
            self.failure = errors.unavailable(
                "An isolation check failed. The server serves no more requests.",
                "isolation_violated",
            )
        except BaseException:
            logger.critical("the engine failed", exc_info=True)
            self.failure = errors.unavailable(
                "The engine failed. The server ends and has to be started again.", "engine_dead"
            )
        self._end_all(self.failure or errors.shutting_down())

    def step(self) -> bool:
        """Take one turn: run a piece of a batch; at its end advance its jobs to what they do next.

        Waits while there is nothing to do. Returns False when the engine stops.
        """
        turn = self._queue.next_turn()
        if turn is None:
            return False
        self.turn_began = time.monotonic()
        if turn.verifications:
            self._verify(turn.verifications)
        elif not turn.jobs:
            for observer in self._observers:
                observer.on_idle()
        ended, seconds = self._run_piece(turn)
        seconds /= max(len(turn.jobs), 1)
        self._queue.pause([job for job in turn.jobs if job not in ended], seconds)
        for job, outcome in ended.items():
            self._advance(job, outcome, seconds)
        if any(job.status is JobStatus.FAILED for job in turn.jobs):
            self._require_unchanged()
        self.busy_seconds += time.monotonic() - self.turn_began
        self.turn_began = None
        return True

    def _open(self, open_backend: Callable[[], Backend]) -> bool:
        try:
            backend = open_backend()
            self_check(backend)
            warm_up(backend)
        except BaseException as error:
            # The message of a ValueError (ModelError is one) is enough; others need the traceback.
            is_known = isinstance(error, ValueError)
            logger.error("cannot open the model: %s", error, exc_info=not is_known)
            self.opened.set_exception(error)
            return False
        self._backend = backend
        backend.share(self._queue.has_company)
        for observer in self._observers:
            observer.on_opened(backend)
        self.opened.set_result(backend)
        logger.info(
            "ready: %s (%s, %s parameters); prompts: %s",
            backend.name,
            backend.family,
            backend.parameters,
            PROMPT_FORMS[backend.prompt_form],
        )
        return True

    def _run_piece(self, turn: Turn) -> tuple[dict[Job, Any], float]:
        """Run the next piece of what the jobs of a turn await.

        Returns:
            The outcomes of the jobs whose operation has ended: a result, the exception of an
            operation that failed, or None for a job that awaits nothing. And the seconds of the
            piece.
        """
        if not turn.operations:
            return dict.fromkeys(turn.jobs), 0.0
        began = time.monotonic()
        results = self._batch(turn).run_piece()
        self._backend.synchronize()
        seconds = time.monotonic() - began
        ended = {}
        for job in turn.jobs:
            for operation, result in results:
                if operation is self._begun[job][1]:
                    ended[job] = result
        for job in ended:
            del self._begun[job]
        if results:
            for observer in self._observers:
                observer.on_batch(turn.operations[0].name, [result for _, result in results])
        return ended, seconds

    def _batch(self, turn: Turn) -> Batch:
        """Return the batch that a turn goes on with, or begin one."""
        if turn.jobs[0] not in self._begun:
            batch = Batch(turn.operations)
            for job, operation in zip(turn.jobs, turn.operations, strict=True):
                self._begun[job] = batch, operation
        return self._begun[turn.jobs[0]][0]

    def _advance(self, job: Job, outcome: object, seconds: float) -> None:
        """Take a job to its next operation or its end; ``seconds`` were spent on its outcome."""
        began = time.monotonic() - seconds
        following = self._resume(job, outcome)
        seconds = time.monotonic() - began
        if isinstance(following, JobStatus):
            self._end(job, following, WASTE_REASONS.get(following, job.reason), seconds)
        else:
            self._queue.requeue(job, following, seconds)

    def _resume(self, job: Job, outcome: object) -> Operation[Any] | JobStatus:
        """Resume a job's program; return the operation that it awaits next, or how it ended."""
        # A failure is handled even so: it may have damaged what others use.
        if job.status is JobStatus.CANCELLING and not isinstance(outcome, Exception):
            return JobStatus.CANCELLED
        try:
            return resume(self._programs.get(job) or self._start(job), outcome)
        except StopIteration:
            return JobStatus.COMPLETED
        except RequestError as error:
            self._deliver(job, error)
            return JobStatus.REFUSED
        except IsolationError:
            self._deliver(job, errors.internal())
            raise
        except Exception as error:
            logger.exception("request %s failed", job.request_id)
            self._deliver(job, errors.failed_working(error))
            return JobStatus.FAILED

    def _start(self, job: Job) -> Program[None]:
        self._queue.start(job)
        for observer in self._observers:
            observer.on_started(job)
        should_stop = StepDeadline(job, lambda: self._queue.active_jobs)
        program = self._backend.start(job.work, partial(self._emit, job), should_stop)
        self._programs[job] = program
        return program

    def _emit(self, job: Job, event: Event) -> None:
        for observer in self._observers:
            observer.on_event(job, event)
        self._deliver(job, event)

    def _deliver(self, job: Job, item: Event | Exception) -> None:
        try:
            job.deliver(item)
        except RuntimeError:  # the event loop is closed, so nobody will read it
            self._queue.cancel(job, "disconnect")

    def _end(self, job: Job, status: JobStatus, reason: str | None, seconds: float = 0.0) -> None:
        """End an admitted job and free everything that its program holds."""
        program = self._programs.pop(job, None)
        if job in self._begun:
            batch, operation = self._begun.pop(job)
            batch.leave(operation)
        try:
            if program is not None:
                program.close()
        except Exception:
            logger.exception("request %s: its program did not close cleanly", job.request_id)
        worked_seconds = self._queue.end(job, status, reason, seconds)
        for observer in self._observers:
            observer.on_ended(job, worked_seconds)

    def _verify(self, verifications: Sequence[Verification] = ()) -> None:
        """Verify the base weights and answer ``verifications``.

        Raises:
            IsolationError: the base weights have changed.
        """
        try:
            is_intact = self._backend.verify()
        except BaseException:
            for verification in verifications:
                verification.set_exception(errors.internal())
            raise
        for verification in verifications:
            verification.set_result(is_intact)
        if not is_intact:
            raise IsolationError("the base weights have changed")

    def _require_unchanged(self) -> None:
        """Raise IsolationError unless the base weights are what they were."""
        if not self._backend.is_unchanged():
            raise IsolationError("the base weights have changed")

    def _end_all(self, error: ApiError) -> None:
        """Refuse what comes, and end every job and verification with ``error``."""
        self._queue.close(error)
        for verification in self._queue.take_verifications():
            verification.set_exception(error)
        reason = error.body.error.code
        for job in self._queue.waiting:
            self._deliver(job, error)
            self._queue.cancel(job, reason)
        for job in self._queue.jobs:
            self._deliver(job, error)
            self._end(job, JobStatus.FAILED, reason)
