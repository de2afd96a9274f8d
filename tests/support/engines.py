"""Engines without HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.engine import Engine
from refine_server.server.engine.events import RunEvent
from refine_server.server.engine.run import Run
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.metrics.engine_observer import EngineMetrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import Work


class Served:
    """A running engine, its metrics, and a way to submit work."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics

    def submit(self, work: Work, timeout_seconds: float = 60.0) -> "Submitted":
        """Submit work to the engine in a task of its own."""
        return Submitted(self.engine, work, timeout_seconds)

    def wasted_seconds(self) -> dict[str, float]:
        """Seconds of work without an answer, by reason."""
        [metric] = self.metrics.wasted_seconds.collect()
        return {s.labels["reason"]: s.value for s in metric.samples if s.name.endswith("_total")}

    def mean_batch_size(self, operation: str) -> float:
        """Requests in a batch of operations of that name, on average."""
        samples = self.metrics.batch_size.labels(operation)._child_samples()
        values = {sample.name: sample.value for sample in samples if not sample.labels}
        return values["_sum"] / values["_count"]


class Submitted:
    """Work that runs in a task, like a request whose client can disconnect."""

    def __init__(self, engine: Engine, work: Work, timeout_seconds: float) -> None:
        self.run: Run | None = None
        self.events: list[RunEvent] = []
        self._task = asyncio.create_task(self._follow(engine, work, timeout_seconds))

    async def _follow(self, engine: Engine, work: Work, timeout_seconds: float) -> None:
        async with engine.run(work, request_id="r", timeout_seconds=timeout_seconds) as run:
            self.run = run
            async for event in run:
                self.events.append(event)

    async def admitted(self) -> "Submitted":
        """Wait until the work is in the queue; raise what refused it."""
        await until(lambda: self.run is not None or self._task.done())
        if self.run is None:
            await self._task
        return self

    async def finish(self) -> list[RunEvent]:
        """Wait for the end; return all events, or raise what ended the work early."""
        await self._task
        return self.events

    async def answer(self) -> AnswerCompleted:
        """Wait for the end, which is an answer."""
        last = (await self.finish())[-1]
        assert isinstance(last, AnswerCompleted)
        return last

    async def leave(self) -> None:
        """End the task, as the server does when the client closes the connection."""
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def serving(
    open_backend: Callable[[Settings], Backend], **options: object
) -> AsyncIterator[Served]:
    """Run an engine on a backend; stop it at the end."""
    settings = Settings(**options)  # type: ignore[arg-type]
    metrics = Metrics()
    engine = Engine(lambda: open_backend(settings), settings, [EngineMetrics(metrics)])
    engine.start()
    try:
        await asyncio.wrap_future(engine.opened)
        yield Served(engine, metrics)
    finally:
        await asyncio.to_thread(engine.stop)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
