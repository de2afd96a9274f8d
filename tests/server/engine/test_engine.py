"""Queueing, fairness, cancelling and failing, against a scripted model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from refine_server.server.engine.engine import Engine
from refine_server.server.engine.job import Job
from refine_server.server.http.errors import ApiError
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.decoding.decode import Prediction
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted, Event
from refine_server.ttt.interface.requests import AnswerRequest, Work
from refine_server.ttt.models.state import State


def request(name: str, document: str = "text", steps: int = 2) -> AnswerRequest:
    sampling = SamplingConfig(max_tokens=2)
    return AnswerRequest(document, name, AdaptConfig(steps=steps), sampling)


@asynccontextmanager
async def running(fake: Any, **options: Any) -> AsyncIterator[Engine]:
    settings = Settings(model="fake", **options)
    engine = Engine(lambda: fake.open(settings), settings, Metrics())
    engine.start()
    try:
        await asyncio.wrap_future(engine.opened)
        fake.turns.clear()
        fake.closed.clear()
        yield engine
    finally:
        fake.gate.set()
        await asyncio.to_thread(engine.stop)


async def submit(engine: Engine, work: Work, request_id: str, timeout: float = 60.0) -> Job:
    job = Job(work, request_id, timeout)
    await engine.submit(job)
    return job


async def finish(engine: Engine, job: Job) -> list[Event]:
    return [event async for event in engine.events(job)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def wasted(engine: Engine) -> dict[str, float]:
    samples = engine._metrics.wasted_seconds.collect()[0].samples
    return {s.labels["reason"]: s.value for s in samples if s.name.endswith("_total")}


def test_a_short_job_ends_while_a_long_one_runs(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake) as engine:
            long = await submit(engine, request("long", "slow", steps=200), "r1")
            short = await submit(engine, request("short", steps=2), "r2")
            await finish(engine, short)
            await until(lambda: fake.closed == ["short"])
            engine.cancel(long, "disconnect")

    asyncio.run(scenario())


def test_active_jobs_take_turns(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake) as engine:
            first = await submit(engine, request("1", "hold", steps=4), "r1")
            await until(lambda: fake.turns == ["1"])
            second = await submit(engine, request("2", steps=4), "r2")
            fake.gate.set()
            await asyncio.gather(finish(engine, first), finish(engine, second))
            steps = fake.turns[1:7]
            assert steps.count("1") == steps.count("2") == 3

    asyncio.run(scenario())


def test_waiting_jobs_are_admitted_first_in_first_out(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake, max_active=1) as engine:
            jobs = [await submit(engine, request(name), name) for name in "abcd"]
            await asyncio.gather(*(finish(engine, job) for job in jobs))
            await until(lambda: fake.closed == ["a", "b", "c", "d"])  # closed after its last event
            assert jobs[3].queue_seconds > 0

    asyncio.run(scenario())


def test_a_cancelled_job_takes_no_further_step(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake) as engine:
            job = await submit(engine, request("gone", "hold", steps=50), "r1")
            await until(lambda: fake.turns == ["gone"])
            engine.cancel(job, "disconnect")
            fake.gate.set()
            await until(lambda: fake.closed == ["gone"])
            assert fake.turns == ["gone"]
            assert wasted(engine)["disconnect"] > 0

    asyncio.run(scenario())


def test_cancelling_an_ended_job_wastes_nothing(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake) as engine:
            job = await submit(engine, request("done"), "r1")
            await finish(engine, job)
            engine.cancel(job, "disconnect")
            await until(lambda: fake.closed == ["done"])
            assert wasted(engine) == {}

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_a_cancelled_waiter_makes_room(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake, max_active=1, max_queue=1) as engine:
            running_job = await submit(engine, request("a", "hold"), "r1")
            await until(lambda: fake.turns == ["a"])
            waiting = await submit(engine, request("b"), "r2")
            with pytest.raises(ApiError) as refused:
                await submit(engine, request("c"), "r3")
            assert refused.value.status == 429
            assert refused.value.retry_after == 1  # the jobs ahead are short
            engine.cancel(waiting, "disconnect")
            third = await submit(engine, request("c"), "r3")
            fake.gate.set()
            await asyncio.gather(finish(engine, running_job), finish(engine, third))
            await until(lambda: fake.closed == ["a", "c"])

    asyncio.run(scenario())


def test_the_deadline_ends_running_and_waiting_jobs(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake, max_active=1) as engine:
            jobs = [await submit(engine, request(name, "hold"), name, 0.1) for name in "ab"]
            for job in jobs:
                with pytest.raises(ApiError, match="longer than") as late:
                    await finish(engine, job)
                assert late.value.status == 504
            fake.gate.set()
            await until(lambda: fake.closed == ["a"])
            assert wasted(engine)["timeout"] > 0

    asyncio.run(scenario())


def test_one_job_may_crash_and_the_other_goes_on(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake) as engine:
            good = await submit(engine, request("good", "hold"), "r1")
            bad = await submit(engine, request("bad", "crash"), "r2")
            fake.gate.set()
            with pytest.raises(ApiError) as crash:
                await finish(engine, bad)
            assert crash.value.status == 500
            assert isinstance((await finish(engine, good))[-1], AnswerCompleted)
            engine.ready()

    asyncio.run(scenario())


def test_when_the_thread_dies_every_job_is_told_and_none_is_taken(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake, max_active=2) as engine:
            names = ("hold", "exit", "text")
            jobs = [await submit(engine, request(name, name), name) for name in names]
            fake.gate.set()
            for job in jobs[1:]:
                with pytest.raises(ApiError) as dead:
                    await finish(engine, job)
                assert dead.value.body.error.code == "engine_dead"
            with pytest.raises(ApiError, match="died"):
                await submit(engine, request("late"), "r4")

    asyncio.run(scenario())


def test_a_drain_gives_up_waiting_jobs_at_once_and_running_ones_later(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake, max_active=1) as engine:
            job = await submit(engine, request("a", "hold"), "r1")
            await until(lambda: fake.turns == ["a"])
            waiting = await submit(engine, request("b"), "r2")
            engine.drain(0.1)
            for given_up in (waiting, job):
                with pytest.raises(ApiError) as stopped:
                    await finish(engine, given_up)
                assert stopped.value.body.error.code == "shutting_down"
            with pytest.raises(ApiError, match="shutting down"):
                await submit(engine, request("late"), "r3")

    asyncio.run(scenario())


def test_a_step_that_takes_too_long_is_not_ready(fake: Any) -> None:
    async def scenario() -> None:
        async with running(fake, stall_seconds=0.05) as engine:
            engine.ready()
            job = await submit(engine, request("a", "hold"), "r1")
            await until(lambda: fake.turns == ["a"])
            await asyncio.sleep(0.1)
            with pytest.raises(ApiError, match="no progress"):
                engine.ready()
            fake.gate.set()
            await finish(engine, job)
            await until(lambda: engine._turn_began is None)
            engine.ready()

    asyncio.run(scenario())


def test_drafts_are_counted(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    after = Prediction(torch.zeros(3, 5), State((), torch.zeros(1)), drafted=4)
    monkeypatch.setattr(
        f"{Engine.__module__}.run_batch", lambda operations: [after for _ in operations]
    )

    async def scenario() -> None:
        async with running(fake) as engine:
            await finish(engine, await submit(engine, request("1", steps=2), "r1"))
            drafted = engine._metrics.drafted_tokens._value.get()
            assert drafted > 0
            assert engine._metrics.accepted_tokens._value.get() == drafted / 2

    asyncio.run(scenario())
