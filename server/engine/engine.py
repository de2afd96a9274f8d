"""The engine: the event loop's interface to the model, which runs in a thread of its own.

Threads and data flow::

    event loop            encoding threads        one lock               model thread
    ──────────            ────────────────        ────────               ────────────
    Engine.run ───Work──▶ Backend.encode
        │ ◀──EncodedWork── (Encoder)
        │
        └───────────────────Job─────────────────▶ JobQueue
                                                  Scheduler ────Turn───▶ Worker.step
                                                     ▲                     │  run_batch(operations)
                                                     └───next operation────┤  resume(programs)
    Run  ◀──────────────────────events─────────────────────────────────────┤
     │                                                                     ▼
     └────────────────────cancel────────────────▶ JobQueue           EngineObserver:
                                                                     metrics, cost model

Who waits for what, and what bounds it:

    event loop        for an encoding thread and for the next event of a run; the run's deadline
    encoding thread   for nothing; a text is refused as soon as it is known to be too long
    model thread      for a job, while the queue is empty
    job               for its turn; what exceeds the queue's limits is refused with 429

The event loop owns ``Engine`` and every ``Run``. The model thread owns ``Worker``, the programs and
the model. They share ``JobQueue``, which locks itself. A turn is one batch of operations, so
cancellation, deadlines and fairness are exact to one step of work.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.encoder import Encoder, adapts, count_characters
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.run import Delivered, Run
from refine_server.server.engine.scheduling.cost_model import CostModel
from refine_server.server.engine.scheduling.job import Job, reuses_adaptation
from refine_server.server.engine.scheduling.job_queue import Forecast, JobQueue, Load
from refine_server.server.engine.scheduling.scheduler import QueueLimits
from refine_server.server.engine.worker import Worker
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.settings import Settings
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.requests import Work
from refine_server.ttt.programs.encode import EncodedWork

T = TypeVar("T")

STALLED = "The model makes no progress."
JOIN_SECONDS = 10.0
"""Longest wait for the thread's last turn; as a daemon it cannot keep the process."""


class _NotSubmitted(Exception):
    """Ends a charge for work that is not submitted."""


class Engine:
    """Loads a model in a thread of its own and runs requests on it.

    Args:
        open_backend: loads the model; called once, in the model's thread.
        settings: the queue's limits, and the longest turn.
        observers: are notified of what the worker does.
        charge: charges an owner for a document of so many tokens, as a context around its
            submission; raises ApiError if the owner's quota is used up.
        memory: the budget that requests are kept within; None for no limit.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        settings: Settings,
        observers: Sequence[EngineObserver] = (),
        charge: Callable[[str, int], AbstractContextManager[None]] = lambda *_: nullcontext(),
        memory: MemoryBudget | None = None,
    ) -> None:
        self._memory = memory or MemoryBudget()
        limits = QueueLimits(
            active=settings.max_active,
            jobs=settings.max_queue,
            seconds=settings.max_queue_seconds,
            nbytes=lambda: self._memory.request_bytes,
        )
        self._charge = charge
        self._stall_seconds = settings.stall_seconds
        self._costs = CostModel()
        self._observers = [self._costs, *observers]
        self._encoder = Encoder()
        self._queue = JobQueue(limits, settings.max_batch)
        self._memory.account("requests", lambda: self._queue.active_bytes)
        self._worker = Worker(self._queue, self._observers)
        self._thread = threading.Thread(
            target=self._worker.run, args=(open_backend,), name="refine-engine", daemon=True
        )

    # -- requests -----------------------------------------------------------------------------

    @asynccontextmanager
    async def run(
        self, work: Work, *, request_id: str, timeout_seconds: float, priority: int = 0
    ) -> AsyncIterator[Run]:
        """Encode and submit the work; cancel it when the context is left before its end.

        Args:
            work: what to do.
            request_id: the HTTP request that asked for it.
            timeout_seconds: longest time from now to its last event.
            priority: from -10 to 10; lower is more urgent.

        Raises:
            RequestError: the request cannot be served as written.
            ApiError: the server is not ready, the queue is full, the quota or the time is used up,
                or there is not enough memory for the work.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        events: asyncio.Queue[Delivered] = asyncio.Queue()

        def deliver(item: Delivered) -> None:
            loop.call_soon_threadsafe(events.put_nowait, item)

        self.ready()
        self._queue.require_place(reuses_adaptation=reuses_adaptation(work))
        try:
            async with asyncio.timeout_at(deadline):
                job = await self._encode(work, deliver, request_id=request_id, priority=priority)
                job.deadline = job.submitted + timeout_seconds
        except TimeoutError:
            self._miss_deadline("encoding")
            raise errors.timed_out(timeout_seconds) from None
        self._memory.require(job.nbytes, job.tokens)
        charge = nullcontext() if job.reuses_adaptation else self._charge(job.owner, job.tokens)
        for observer in self._observers:
            observer.on_submitted(job)
        try:
            accepted = self._queue.submit(job, charge)
            yield Run(
                job,
                accepted,
                events,
                self._queue.cancel,
                self._miss_deadline,
                deadline=deadline,
                timeout_seconds=timeout_seconds,
            )
        finally:
            self._queue.cancel(job, "disconnect")
            for observer in self._observers:
                observer.on_left(job)

    async def forecast(self, work: Work, *, timeout_seconds: float, priority: int = 0) -> Forecast:
        """Say what work would cost and whether it would be admitted now.

        It is encoded, and neither submitted nor charged for.

        Raises:
            RequestError: the request cannot be served as written.
            ApiError: the server is not ready.
        """
        job = await self._encode(work, lambda _: None, request_id="", priority=priority)
        job.deadline = job.submitted + timeout_seconds
        forecast = self._queue.forecast(job)
        try:
            self._memory.require(job.nbytes, job.tokens)
        except ApiError as refusal:
            return replace(forecast, refusal=refusal)
        if forecast.refusal is not None or job.reuses_adaptation:
            return forecast
        try:
            with self._charge(job.owner, job.tokens):
                raise _NotSubmitted  # so that nothing is charged
        except _NotSubmitted:
            return forecast
        except ApiError as refusal:
            return replace(forecast, refusal=refusal)

    async def with_tokenizer(self, use: Callable[[PromptTemplate], T], *, characters: int) -> T:
        """Return what ``use`` returns for a tokenizer, in a thread that may use it.

        Args:
            use: encodes or decodes; it is dropped if the caller is cancelled before it begins.
            characters: length of the text, so that short ones do not wait behind long ones.
        """
        templates = self.ready().templates

        def run() -> T:
            with templates.take() as template:
                return use(template)

        return await self._encoder.run(run, characters=characters)

    def _miss_deadline(self, stage: str) -> None:
        for observer in self._observers:
            observer.on_deadline_missed(stage)

    async def _encode(
        self,
        work: Work,
        deliver: Callable[[Delivered], None],
        *,
        request_id: str,
        priority: int,
    ) -> Job:
        backend = self.ready()
        submitted = time.monotonic()

        def encode() -> tuple[EncodedWork, int]:
            encoded = backend.encode(work)
            return encoded, backend.request_bytes(encoded)

        encoded, nbytes = await self._encoder.run(
            encode, characters=count_characters(work), may_measure=adapts(work)
        )
        return Job(
            work=encoded,
            nbytes=nbytes,
            request_id=request_id,
            deliver=deliver,
            priority=priority,
            estimate=self._costs.estimate(work, encoded.tokens, nbytes),
            submitted=submitted,
        )

    # -- health -------------------------------------------------------------------------------

    @property
    def opened(self) -> "Future[Backend]":
        """Resolves to the backend when the model is loaded and has passed its self-check."""
        return self._worker.opened

    def ready(self) -> Backend:
        """Return the backend while requests are being served; raise 503 while they are not."""
        if not self.opened.done():
            raise errors.unavailable("The model is still loading.", "loading")
        if self.opened.exception() is not None:
            raise errors.unavailable(
                "The model could not be loaded. The server's log has the reason.", "load_failed"
            )
        if refusal := self._worker.failure or self._queue.refusal:
            raise refusal
        if self.is_stalled:
            raise errors.unavailable(STALLED, "engine_stalled")
        return self.opened.result()

    async def verify(self) -> bool:
        """Return whether the base weights are what was loaded; if not, all service ends."""
        self.ready()
        return await asyncio.wrap_future(self._queue.request_verification())

    @property
    def is_ready(self) -> bool:
        """Whether requests are being served."""
        try:
            self.ready()
        except ApiError:
            return False
        return True

    @property
    def load(self) -> Load:
        """How much there is to do now."""
        return self._queue.load

    @property
    def busy_seconds(self) -> float:
        """Seconds that the model has worked, without the present turn."""
        return self._worker.busy_seconds

    @property
    def is_busy(self) -> bool:
        """Whether a job has not ended."""
        return bool(self._queue.jobs)

    @property
    def is_stalled(self) -> bool:
        """Whether the present turn takes longer than any should."""
        began = self._worker.turn_began
        return began is not None and time.monotonic() - began > self._stall_seconds

    @property
    def is_broken(self) -> bool:
        """Whether only a new process can serve again: the thread died, or it hangs."""
        return self._worker.failure is not None or self.is_stalled

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended; it may hang."""
        return self._thread.is_alive()

    # -- start and end ------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def drain(self, seconds: float) -> None:
        """Accept no new jobs, and end those that wait now, and those that still run in ``seconds``.

        Adaptations that run after half of that time end at their next step and are kept as they
        are. A second call does nothing.
        """
        if not self._queue.close(errors.shutting_down()):
            return
        self._end_jobs(self._queue.waiting, errors.shutting_down(), "shutdown")
        loop = asyncio.get_running_loop()
        loop.call_later(seconds / 2, lambda: self._queue.stop_adapting("shutdown"))
        loop.call_later(seconds, self._end_remaining)

    def abandon(self) -> None:
        """End all jobs of a thread that hangs, and accept no new ones."""
        stalled = errors.unavailable(STALLED, "engine_stalled")
        self._queue.close(stalled)
        for verification in self._queue.take_verifications():
            verification.set_exception(stalled)
        self._end_jobs(self._queue.jobs, stalled, "stalled")

    def stop(self) -> None:
        """End the thread after its present turn, and with it the jobs that are left."""
        self._queue.stop()
        self._encoder.close()
        end = time.monotonic() + JOIN_SECONDS
        while self.is_alive and not self.is_stalled and time.monotonic() < end:
            self._thread.join(0.1)

    def _end_remaining(self) -> None:
        self._end_jobs(self._queue.jobs, errors.shutting_down(), "shutdown")

    def _end_jobs(self, jobs: Sequence[Job], error: errors.ApiError, reason: str) -> None:
        for job in jobs:
            job.deliver(error)
            self._queue.cancel(job, reason)
