"""Queueing, fairness, cancellation and failures, on the scripted backend."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise

import pytest
import torch

from refine_server.server.engine import run
from refine_server.server.engine.events import Accepted, Progress, QueueMoved
from refine_server.server.http.errors import ApiError
from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decode import Prediction
from refine_server.ttt.interface.config import AdaptConfig, OptimizerConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.models.state import State
from support.engines import Served, Submitted, serving, until
from support.fake_backend import FakeBackend, Script

pytestmark = pytest.mark.anyio

Start = Callable[..., AbstractAsyncContextManager[Served]]


def request(query: str, document: str = "text", steps: int = 2) -> AnswerRequest:
    """Make work of ``steps`` steps and two tokens, which the backend records as ``query``."""
    sampling = SamplingConfig(max_tokens=2)
    return AnswerRequest(
        document, query, AdaptConfig(optimizer=OptimizerConfig(steps=steps)), sampling
    )


@pytest.fixture
def start(fake: FakeBackend) -> Start:
    """Starts an engine on the scripted backend; the gate opens before it stops."""

    @asynccontextmanager
    async def start(**options: object) -> AsyncIterator[Served]:
        async with serving(fake.open, model="fake", **options) as served:
            try:
                yield served
            finally:
                fake.gate.set()

    return start


async def test_a_short_job_ends_while_a_long_one_runs(start: Start, fake: FakeBackend) -> None:
    async with start() as served:
        long = await served.submit(request("long", fake.slow_down("slow"), steps=200)).admitted()
        await served.submit(request("short", steps=2)).finish()
        await until(lambda: fake.closed == ["short"])
        await long.leave()


def last(turns: list[str], name: str) -> int:
    return len(turns) - 1 - turns[::-1].index(name)


async def test_active_jobs_take_turns(start: Start, fake: FakeBackend) -> None:
    async with start() as served:
        first = served.submit(request("1", fake.hold("held"), steps=20))
        await until(lambda: fake.turns == ["1"])
        second = await served.submit(request("2", steps=20)).admitted()
        fake.gate.set()
        await asyncio.gather(first.finish(), second.finish())
        assert fake.turns.index("2") < last(fake.turns, "1")
        assert fake.turns.index("1", 1) < last(fake.turns, "2")


async def test_waiting_jobs_are_admitted_first_in_first_out(
    start: Start, fake: FakeBackend
) -> None:
    async with start(max_active=1) as served:
        jobs = [await served.submit(request(name)).admitted() for name in "abcd"]
        await asyncio.gather(*(job.finish() for job in jobs))
        await until(lambda: fake.closed == ["a", "b", "c", "d"])  # closed after its last event
        last_run = jobs[3].run
        assert last_run is not None
        assert last_run.queue_seconds > 0


def places(job: Submitted) -> list[int]:
    """Return the places in the queue that a job was told, in their order."""
    return [e.queue_position for e in job.events if isinstance(e, Accepted | QueueMoved)]


async def test_jobs_are_told_their_place_in_the_queue_and_its_changes(
    start: Start, fake: FakeBackend
) -> None:
    async with start(max_active=1) as served:
        first = served.submit(request("a", fake.hold("held")))
        await until(lambda: fake.turns == ["a"])
        others = [await served.submit(request(name)).admitted() for name in "bcd"]
        await others[0].leave()
        await until(lambda: places(others[2]) == [3, 2])
        fake.gate.set()
        await asyncio.gather(first.finish(), others[1].finish(), others[2].finish())
        assert places(first) == [0]
        assert places(others[0]) == [1]
        assert places(others[1]) == [2, 1, 0]
        assert places(others[2]) == [3, 2, 1, 0]


async def test_the_first_event_says_what_the_work_costs_and_when_it_will_end(
    start: Start, fake: FakeBackend
) -> None:
    async with start(max_active=1) as served:
        running = served.submit(request("a", fake.hold("held"), steps=20))
        await until(lambda: fake.turns == ["a"])
        waiting = await served.submit(request("b")).admitted()
        fake.gate.set()
        (alone, *_), (behind, *_) = await running.finish(), await waiting.finish()
        for first, job in ((alone, running), (behind, waiting)):
            assert isinstance(first, Accepted)
            assert job.run is not None
            assert first.estimate == job.run.estimate
        assert isinstance(alone, Accepted)
        assert alone.seconds_left == running.run.estimate.total > 0  # type: ignore[union-attr]
        assert isinstance(behind, Accepted)
        assert behind.seconds_left > waiting.run.estimate.total  # type: ignore[operator, union-attr]


async def test_a_run_that_is_silent_tells_its_progress(
    start: Start, fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SILENT_SECONDS", 0.01)
    async with start(max_active=1) as served:
        working = await served.submit(request("a", fake.hold("held"))).admitted()
        waiting = await served.submit(request("b")).admitted()
        await until(lambda: phases(working)[-1:] == ["adapting"])
        await until(lambda: phases(waiting)[-1:] == ["queued"])
        fake.gate.set()
        await asyncio.gather(working.finish(), waiting.finish())


def phases(job: Submitted) -> list[str]:
    return [event.phase for event in job.events if isinstance(event, Progress)]


async def test_a_job_whose_client_leaves_takes_no_further_step(
    start: Start, fake: FakeBackend
) -> None:
    async with start() as served:
        job = served.submit(request("gone", fake.hold("held"), steps=50))
        await until(lambda: fake.turns == ["gone"])
        await job.leave()
        fake.gate.set()
        await until(lambda: fake.closed == ["gone"])
        assert fake.turns == ["gone"]
        await until(lambda: served.wasted_seconds().get("disconnect", 0.0) > 0)


async def test_a_job_that_completes_wastes_nothing(start: Start, fake: FakeBackend) -> None:
    async with start() as served:
        await served.submit(request("done")).finish()
        await until(lambda: fake.closed == ["done"])
        assert served.wasted_seconds() == {}


async def test_a_full_queue_refuses_and_a_waiter_that_leaves_makes_room(
    start: Start, fake: FakeBackend
) -> None:
    async with start(max_active=1, max_queue=1) as served:
        running = served.submit(request("a", fake.hold("held")))
        await until(lambda: fake.turns == ["a"])
        waiting = await served.submit(request("b")).admitted()
        with pytest.raises(ApiError) as refused:
            await served.submit(request("c")).finish()
        assert refused.value.status_code == 429
        assert refused.value.retry_after == 1  # the jobs ahead are short
        await waiting.leave()
        third = await served.submit(request("c")).admitted()
        fake.gate.set()
        await asyncio.gather(running.finish(), third.finish())
        await until(lambda: fake.closed == ["a", "c"])


async def test_the_deadline_ends_running_and_waiting_jobs(start: Start, fake: FakeBackend) -> None:
    async with start(max_active=1) as served:
        held = fake.hold("held")
        jobs = [await served.submit(request(name, held), 0.5).admitted() for name in "ab"]
        for job in jobs:
            with pytest.raises(ApiError, match="longer than") as late:
                await job.finish()
            assert late.value.status_code == 504
        fake.gate.set()
        await until(lambda: fake.closed == ["a"])
        await until(lambda: served.wasted_seconds().get("timeout", 0.0) > 0)


async def test_one_job_may_crash_and_the_other_goes_on(start: Start, fake: FakeBackend) -> None:
    async with start() as served:
        good = await served.submit(request("good", fake.hold("held"))).admitted()
        bad = await served.submit(request("bad", fake.fail("crash"))).admitted()
        fake.gate.set()
        with pytest.raises(ApiError) as crash:
            await bad.finish()
        assert crash.value.status_code == 500
        assert isinstance((await good.finish())[-1], AnswerCompleted)
        served.engine.ready()


async def test_when_the_thread_dies_every_job_fails_and_no_new_one_is_accepted(
    start: Start, fake: FakeBackend
) -> None:
    async with start(max_active=2) as served:
        held = await served.submit(request("held", fake.hold("held"))).admitted()
        await until(lambda: fake.turns == ["held"])  # the thread is busy until the gate opens
        others = (fake.fail("exit", SystemExit()), "text")
        jobs = [held, *[await served.submit(request(t, t)).admitted() for t in others]]
        fake.gate.set()
        for job in jobs[1:]:
            with pytest.raises(ApiError) as dead:
                await job.finish()
            assert dead.value.body.error.code == "engine_dead"
        with pytest.raises(ApiError, match="engine failed"):
            await served.submit(request("late")).finish()


async def test_a_drain_gives_up_waiting_jobs_at_once_and_running_ones_later(
    start: Start, fake: FakeBackend
) -> None:
    async with start(max_active=1) as served:
        running = served.submit(request("a", fake.hold("held")))
        await until(lambda: fake.turns == ["a"])
        waiting = await served.submit(request("b")).admitted()
        served.engine.drain(0.1)
        for job in (waiting, running):
            with pytest.raises(ApiError) as stopped:
                await job.finish()
            assert stopped.value.body.error.code == "shutting_down"
        with pytest.raises(ApiError, match="shutting down"):
            await served.submit(request("late")).finish()


async def test_a_step_that_takes_too_long_is_not_ready(start: Start, fake: FakeBackend) -> None:
    async with start(stall_seconds=0.05) as served:
        served.engine.ready()
        job = served.submit(request("a", fake.hold("held")))
        await until(lambda: fake.turns == ["a"])
        await asyncio.sleep(0.1)
        with pytest.raises(ApiError, match="no progress"):
            served.engine.ready()
        fake.gate.set()
        await job.finish()
        await until(lambda: not served.engine.is_stalled)
        served.engine.ready()


async def test_weights_are_verified_after_a_failure_whose_client_has_left(
    start: Start, fake: FakeBackend
) -> None:
    def fail_later() -> None:
        fake.gate.wait(10)
        raise RuntimeError("secret internals")

    async with start() as served:
        job = served.submit(request("bad", fake.script("crash", Script(step=fail_later))))
        await until(lambda: fake.turns == ["bad"])
        await job.leave()
        fake.is_intact = False
        fake.gate.set()
        await until(lambda: served.engine.is_broken)


async def test_a_failed_job_does_not_hash_the_base_weights(
    start: Start, fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(fake, "verify", lambda: 1 / 0)  # it would take seconds, for everybody
    async with start() as served:
        with pytest.raises(ApiError):
            await served.submit(request("bad", fake.script("crash", Script(step=fail)))).finish()
        await served.submit(request("good")).finish()
        assert not served.engine.is_broken


async def test_every_piece_of_work_ends_when_the_device_is_done(
    start: Start, fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU runs behind the host: without it, one job's seconds are counted as the next one's."""
    done: list[str] = []
    monkeypatch.setattr(fake, "synchronize", lambda: done.append("waited"))
    text = fake.script("step", Script(step=lambda: done.append("step")))
    async with start() as served:
        await served.submit(request("one", text)).finish()
    assert "step" in done
    assert all(after == "waited" for now, after in pairwise(done) if now == "step")


async def test_an_abandoned_verification_has_no_effect(start: Start, fake: FakeBackend) -> None:
    async with start() as served:
        job = served.submit(request("a", fake.hold("held")))
        await until(lambda: fake.turns == ["a"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await served.engine.verify()
        fake.gate.set()
        await job.finish()
        assert await served.engine.verify()


async def test_drafts_are_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = Prediction(torch.zeros(3, 5), State((), torch.zeros(1)), drafted=4)
    run_batch = classmethod(lambda cls, operations: [predicted for _ in operations])
    monkeypatch.setattr(Call, "run_batch", run_batch)
    async with start() as served:
        await served.submit(request("1", steps=2)).finish()
        drafted = served.metrics.drafted_tokens._value.get()
        assert drafted > 0
        assert served.metrics.accepted_tokens._value.get() == drafted / 2
