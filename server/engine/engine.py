"""The thread that owns the model.

Jobs are coroutines that wait for operations, each one step of work. The thread chooses whose turn
it is and runs that job's operation, in one batch with those of other active jobs that fit. So
cancelling, deadlines and fairness are exact to one step and no request blocks HTTP. Events travel
to the event loop; nothing else crosses between the two.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from refine_server.server.engine.backend import Backend, self_check
from refine_server.server.engine.cost_model import CostModel
from refine_server.server.engine.job import Job
from refine_server.server.engine.scheduler import QueueLimits, Scheduler
from refine_server.server.http import errors
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.batching import resume, run_batch
from refine_server.ttt.interface.errors import IsolationError, RequestError
from refine_server.ttt.interface.events import AdaptationStep, Event, Last

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.decoding.prompt import PromptTemplate

logger = logging.getLogger(__name__)

T = TypeVar("T")

COMPLETED = "completed"
HANGS = "The engine makes no progress."
JOIN_SECONDS = 10.0
"""How long to wait for the last step of work; the thread is a daemon, so it cannot hold us up."""


class Engine:
    """Opens a backend in a thread of its own and runs jobs on it, turn by turn.

    ``opened`` resolves when the backend is open and has passed its self-check. ``charge`` holds an
    owner's document of so many tokens against a quota, around the moment it is let in.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        settings: Settings,
        metrics: Metrics,
        charge: Callable[[str, int], AbstractContextManager[None]] = lambda *_: nullcontext(),
    ) -> None:
        self.opened: Future[Backend] = Future()
        self._open_backend = open_backend
        self._charge = charge
        self._metrics = metrics
        self._stall = settings.stall_seconds
        self._max_batch = settings.max_batch
        self._costs = CostModel()
        limits = QueueLimits(
            settings.max_active,
            settings.max_queue,
            settings.max_queue_tokens,
            settings.max_queue_seconds,
        )
        self._scheduler = Scheduler(limits)
        self._changed = threading.Condition()  # guards the scheduler and what follows
        self._verifications: list[Future[bool]] = []
        self._draining = False
        self._stopping = False
        self._ended: errors.ApiError | None = None
        self._turn_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="refine-engine", daemon=True)
        # Tokenising a long document takes a while: it has its own thread, as it must not block
        # HTTP, and a bad request should not have to wait for the model to be told so.
        self._checking = ThreadPoolExecutor(1, "refine-check")

    # -- the event loop's side ----------------------------------------------------------------

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    async def submit(self, job: Job) -> None:
        """Check a job's work and let it wait for its turn.

        Raises:
            RequestError: it cannot be served as written.
            ApiError: the server is not ready, or the queue is full.
        """
        backend = self.ready()
        with self._changed:
            self._scheduler.check_room(paid_for=job.is_paid_for)
        loop = asyncio.get_running_loop()
        job.encoded = await loop.run_in_executor(self._checking, backend.encode, job.work)
        job.tokens = job.encoded.tokens
        with self._changed:
            if self._ended or self._draining:
                raise self._ended or errors.shutting_down()
            job.estimate = self._costs.estimate(job.work, job.tokens)
            with nullcontext() if job.is_paid_for else self._charge(job.owner, job.tokens):
                self._scheduler.add(job)
            self._changed.notify()
            self._show_queue()

    async def events(self, job: Job) -> AsyncIterator[Event]:
        """A job's events, a ``Last`` at the end; raises what ended it early, also its deadline."""
        while True:
            try:
                async with asyncio.timeout_at(job.deadline):
                    item = await job.inbox.get()
            except TimeoutError:
                self.cancel(job, "timeout")
                item = errors.timed_out(job.timeout_seconds)
            if isinstance(item, Exception):
                raise errors.after_adapting(item) if job.has_adapted else item
            yield item
            if isinstance(item, Last):
                return

    async def with_tokenizer(self, do: Callable[["PromptTemplate"], T]) -> T:
        """The result of something done with the tokenizer, in the thread that may use it."""
        template = self.ready().template
        return await asyncio.get_running_loop().run_in_executor(self._checking, do, template)

    def cancel(self, job: Job, reason: str) -> None:
        """Stop working on a job before its next step; does nothing to one that has ended."""
        with self._changed:
            if job.cancelled is None:
                job.cancelled = reason
                self._scheduler.withdraw(job)
                self._show_queue()

    def ready(self) -> Backend:
        """The backend, when requests are being served; raises 503 when not."""
        if not self.opened.done():
            raise errors.unavailable("The model is being loaded.", "loading")
        if self.opened.exception() is not None:
            raise errors.unavailable("The model could not be loaded.", "load_failed")
        if self._ended:
            raise self._ended
        if self._draining:
            raise errors.shutting_down()
        if self.is_stalled:
            raise errors.unavailable(HANGS, "engine_stalled")
        return self.opened.result()

    @property
    def is_stalled(self) -> bool:
        """Whether one step of work takes longer than any may."""
        began = self._turn_began
        return began is not None and time.monotonic() - began > self._stall

    @property
    def is_broken(self) -> bool:
        """Whether only a new process can serve again: the thread is dead, or hangs."""
        return (self._ended is not None and not self._stopping) or self.is_stalled

    @property
    def is_busy(self) -> bool:
        """Whether there is a job that has not ended."""
        with self._changed:
            return bool(self._scheduler.jobs)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, be it that it hangs."""
        return self._thread.is_alive()

    async def verify(self) -> bool:
        """Whether the base weights are what was loaded; if not, nothing is served any more."""
        self.ready()
        asked: Future[bool] = Future()
        with self._changed:
            self._verifications.append(asked)
            self._changed.notify()
        return await asyncio.wrap_future(asked)

    def drain(self, seconds: float) -> None:
        """Take no new jobs, give up those that wait, and those that still run after ``seconds``.

        Adaptations that run after half of that time end at their next step and are kept as they
        are. A second call does nothing.
        """
        with self._changed:
            if self._draining:
                return
            self._draining = True
            waiting = list(self._scheduler.waiting)
        for job in waiting:
            self._give_up(job)
        loop = asyncio.get_running_loop()
        loop.call_later(seconds / 2, self._stop_adapting)
        loop.call_later(seconds, self._give_up_all)

    def abandon(self) -> None:
        """Tell all jobs that nothing is to be expected of a thread that hangs."""
        with self._changed:
            self._draining = True
            asked, self._verifications = self._verifications, []
            jobs = self._scheduler.jobs
        hangs = errors.unavailable(HANGS, "engine_stalled")
        for future in asked:
            future.set_exception(hangs)
        for job in jobs:
            job.deliver(hangs)
            self.cancel(job, "stalled")

    def stop(self) -> None:
        """End the thread after its present step; jobs that are left are told so."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._checking.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + JOIN_SECONDS
        while self._thread.is_alive() and not self.is_stalled and time.monotonic() < end:
            self._thread.join(0.1)

    def _stop_adapting(self) -> None:
        """Half of the grace time is over: what was adapted so far is used instead of lost."""
        with self._changed:
            for job in self._scheduler.jobs:
                job.stop_reason = "shutdown"

    def _give_up_all(self) -> None:
        with self._changed:
            jobs = self._scheduler.jobs
        for job in jobs:
            self._give_up(job)

    def _give_up(self, job: Job) -> None:
        job.deliver(errors.shutting_down())
        self.cancel(job, "shutdown")

    def _show_queue(self) -> None:
        self._metrics.queue_depth.set(len(self._scheduler.waiting))

    # -- the thread's side --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            backend = self._open_backend()
            self_check(backend)
        except BaseException as error:
            # A ValueError (ModelError is one) says all in its message; others need the traceback.
            known = isinstance(error, ValueError)
            logger.error("cannot open the model: %s", error, exc_info=not known)
            self.opened.set_exception(error)
            return
        self._metrics.describe(backend)
        self.opened.set_result(backend)
        logger.info(
            "ready: %s (%s, %s parameters)", backend.name, backend.family, backend.parameters
        )
        end = errors.shutting_down()
        try:
            while self.step(backend):
                pass
        except IsolationError as error:
            logger.critical("isolation is broken, nothing is served any more: %s", error)
            self._metrics.isolation_violations.inc()
            end = errors.unavailable("Isolation is broken.", "isolation_violated")
        except BaseException:
            logger.critical("the engine died", exc_info=True)
            end = errors.unavailable("The engine died.", "engine_dead")
        self._end_all(end)

    def step(self, backend: Backend) -> bool:
        """One step of work for the job whose turn it is, or a wait for one; False to stop."""
        with self._changed:
            lead = self._scheduler.next()
            while lead is None and not self._stopping and not self._verifications:
                self._changed.wait()
                lead = self._scheduler.next()
            if self._stopping:
                return False
            asked, self._verifications = self._verifications, []
            batch = [] if lead is None else self._scheduler.companions(lead, self._max_batch)
            self._show_queue()
        self._turn_began = time.monotonic()
        if asked:
            self._verify(backend, asked)
        if lead is not None:
            ended = self._turn(backend, lead, batch)
            for job, how in ended.items():
                self._end(job, how)
            if "error" in ended.values():
                self._verify(backend, [])
        self._turn_began = None
        return True

    def _turn(self, backend: Backend, lead: Job, batch: list[Job]) -> dict[Job, str]:
        """Run what ``lead`` waits for, and its batch; how those jobs ended that did."""
        if lead.cancelled is not None:
            return {lead: lead.cancelled}
        if lead.operation is None:
            outcomes = [self._begin(backend, lead)]
        else:
            outcomes = self._run_batch(batch, lead.operation.name)
        ended = {}
        for job, outcome in zip(batch, outcomes, strict=True):
            if (how := self._advance(job, outcome)) is not None:
                ended[job] = how
        return ended

    def _begin(self, backend: Backend, job: Job) -> Exception | None:
        """Make a job's coroutine, or give the reason that there is none."""
        job.queue_seconds = time.monotonic() - job.submitted
        self._metrics.queue_seconds.observe(job.queue_seconds)
        try:
            assert job.encoded is not None
            job.program = backend.start(
                job.encoded, lambda event: self._tell(job, event), lambda: job.stop_reason
            )
        except Exception as error:
            return error
        return None

    def _run_batch(self, batch: list[Job], name: str) -> list[Any]:
        """Results of the jobs' operations, or their failures; the seconds are split among them."""
        began = time.monotonic()
        try:
            outcomes = run_batch([job.operation for job in batch if job.operation is not None])
            self._metrics.observe_drafts(outcomes)
            return outcomes
        finally:
            self._metrics.batch_size.labels(name).observe(len(batch))
            share = (time.monotonic() - began) / len(batch)
            with self._changed:
                for job in batch:
                    self._scheduler.charge(job, share)

    def _verify(self, backend: Backend, asked: list[Future[bool]]) -> None:
        try:
            intact = backend.measure() == backend.fingerprint
        except BaseException:
            for future in asked:
                future.set_exception(errors.internal())
            raise
        for future in asked:
            future.set_result(intact)
        if not intact:
            raise IsolationError("the base weights have changed")

    def _advance(self, job: Job, outcome: Any) -> str | None:
        """Take a job to its next operation; how it ended when there will be no more."""
        began = time.monotonic()
        try:
            if job.program is None:
                raise outcome
            job.operation = resume(job.program, outcome)
            return None
        except StopIteration:
            return COMPLETED
        except RequestError as error:
            job.deliver(error)
            return "refused"
        except IsolationError:
            job.deliver(errors.internal())
            raise
        except Exception as error:
            logger.exception("request %s failed", job.request_id)
            job.deliver(errors.failed_working(error))
            return "error"
        finally:
            with self._changed:
                self._scheduler.charge(job, time.monotonic() - began)

    def _tell(self, job: Job, event: Event) -> None:
        job.has_adapted = job.has_adapted or isinstance(event, AdaptationStep)
        self._costs.observe(job.work, job.tokens, event)
        self._metrics.observe(job, event)
        job.deliver(event)

    def _end(self, job: Job, how: str) -> None:
        try:
            job.close()
        except Exception:
            logger.exception("request %s: its coroutine did not close cleanly", job.request_id)
        if how != COMPLETED:
            self._metrics.wasted_seconds.labels(how).inc(job.worked_seconds)
        with self._changed:
            self._scheduler.end(job)

    def _end_all(self, error: errors.ApiError) -> None:
        with self._changed:
            self._ended = error
            jobs = self._scheduler.jobs
            self._scheduler.waiting.clear()
            active = list(self._scheduler.active)
            asked, self._verifications = self._verifications, []
        for future in asked:
            future.set_exception(error)
        for job in jobs:
            job.deliver(error)
        for job in active:
            self._end(job, error.body.error.code)
