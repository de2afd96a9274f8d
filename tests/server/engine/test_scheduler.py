"""Who is let in and whose turn it is, without threads or a clock."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast

import pytest

from refine_server.server.engine.cost_model import CostModel, Rate, step_tokens
from refine_server.server.engine.job import Job
from refine_server.server.engine.scheduler import QueueLimits, Scheduler
from refine_server.server.http.errors import ApiError
from refine_server.ttt.batching import Call, Operation
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import (
    AdaptationStep,
    CompletionEnded,
    DocumentRead,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import StepReport, Timings
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest, CompletionRequest

LIMITS = QueueLimits(active=2, jobs=3, tokens=1000, seconds=100.0)


@pytest.fixture
def make_job() -> Iterator[Callable[..., Job]]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def made(work: Any, priority: int) -> Job:
        return Job(work, "r", 60.0, priority)

    def make(
        owner: str = "a",
        seconds: float = 1.0,
        tokens: int = 10,
        priority: int = 0,
        ask: bool = False,
    ) -> Job:
        adapted = cast(Any, None)
        work = AskRequest(adapted, "?", owner=owner) if ask else AdaptRequest("text", owner=owner)
        job = loop.run_until_complete(made(work, priority))
        job.estimate, job.tokens = seconds, tokens
        return job

    yield make
    asyncio.set_event_loop(None)
    loop.close()


def served(scheduler: Scheduler, turns: int, seconds: Callable[[Job], float]) -> list[Job]:
    order = []
    for _ in range(turns):
        job = scheduler.next()
        assert job is not None
        order.append(job)
        scheduler.charge(job, seconds(job))
    return order


def test_the_queue_is_bounded_by_count(make_job) -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(5):  # two of them find a free place among the active
        scheduler.add(make_job())
    with pytest.raises(ApiError) as refused:
        scheduler.check_room(paid_for=False)
    assert refused.value.status == 429
    scheduler.next()
    assert (len(scheduler.active), len(scheduler.waiting)) == (2, 3)
    with pytest.raises(ApiError):
        scheduler.add(make_job())


@pytest.mark.parametrize("costly", [{"tokens": 999}, {"seconds": 99.5}])
def test_the_queue_is_bounded_by_tokens_and_seconds(make_job, costly) -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(3):
        scheduler.add(make_job())
        scheduler.next()
    with pytest.raises(ApiError) as refused:
        scheduler.add(make_job(**costly))
    assert refused.value.status == 429
    assert refused.value.retry_after == 2
    scheduler.add(make_job(ask=True, **costly))  # its adaptation was paid for


def test_a_job_over_the_bounds_is_served_when_nothing_waits(make_job) -> None:
    scheduler = Scheduler(LIMITS)
    huge = make_job(tokens=10**6, seconds=10**6)
    scheduler.add(huge)
    assert scheduler.next() is huge


def test_questions_about_adapted_documents_have_places_of_their_own(make_job) -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(5):
        scheduler.add(make_job())
        scheduler.next()
    scheduler.add(make_job(ask=True))
    for _ in range(2):
        scheduler.add(make_job(ask=True))
    with pytest.raises(ApiError):
        scheduler.add(make_job(ask=True))


def test_retry_after_is_when_the_first_job_ends(make_job) -> None:
    scheduler = Scheduler(LIMITS)
    first, second = make_job(seconds=10.0), make_job(seconds=30.0)
    for job in (first, second):
        scheduler.add(job)
    scheduler.next()
    assert scheduler.retry_after(0.0) == 20  # the two take turns
    scheduler.charge(first, 4.0)
    assert scheduler.retry_after(0.0) == 12
    assert scheduler.retry_after(50.0) == 50
    scheduler.charge(first, 100.0)
    assert scheduler.retry_after(0.0) == 1


def test_short_turns_pass_between_long_ones(make_job) -> None:
    scheduler = Scheduler(LIMITS)
    long, short = make_job("a"), make_job("b")
    for job in (long, short):
        scheduler.add(job)
    order = served(scheduler, 40, lambda job: 1.0 if job is long else 0.1)
    assert 8 <= order.count(short) / max(order.count(long), 1) <= 12


class Step(Operation):
    """A step that gains by company."""

    name, waits_for_peers, max_batch_size = "step", True, 8

    def can_batch_with(self, head: Self) -> bool:
        return True

    @classmethod
    def run_batch(cls, operations: Sequence[Self]) -> list[Any]:
        return [None for _ in operations]


class Token(Step):
    """A short step, for which nothing is to wait."""

    name, waits_for_peers = "token", False


def active_with(make_job, *operations: Operation | None) -> tuple[Scheduler, list[Job]]:
    """A scheduler in which every operation is what an active job waits for, all served alike."""
    scheduler = Scheduler(QueueLimits(active=8, jobs=8, tokens=1000, seconds=100.0))
    jobs = [make_job() for _ in operations]
    for job in jobs:
        scheduler.add(job)
    scheduler.next()
    for job, operation in zip(jobs, operations, strict=True):
        job.operation = operation
        scheduler.charge(job, 1.0)
    return scheduler, jobs


def test_a_step_lets_those_go_first_that_may_join_it(make_job) -> None:
    """Without that the first to have read its document would step alone, and so would the next."""
    reading = Call(lambda: None)
    scheduler, jobs = active_with(make_job, Step(), reading, reading)
    scheduler.charge(jobs[1], 0.1)  # they have had a little more than the one that steps
    scheduler.charge(jobs[2], 0.2)
    for job in jobs[1:]:
        assert scheduler.next() is job
        job.operation = Step()
        scheduler.charge(job, 0.1)
    assert scheduler.next() is jobs[0]
    assert scheduler.companions(jobs[0], 8) == jobs


def test_a_step_lets_nobody_go_first_who_is_more_than_a_turn_ahead(make_job) -> None:
    scheduler, jobs = active_with(make_job, Step(), Call(lambda: None))
    scheduler.charge(jobs[1], 1.0)
    assert scheduler.next() is jobs[1]
    scheduler.charge(jobs[1], 0.01)
    assert scheduler.next() is jobs[0]


def test_a_newcomer_begins_before_a_step(make_job) -> None:
    scheduler, jobs = active_with(make_job, Step(), None)
    assert scheduler.next() is jobs[1]


def test_a_token_lets_nobody_go_first(make_job) -> None:
    """It is short, and would wait for the reading of a document."""
    scheduler, jobs = active_with(make_job, Token(), Call(lambda: None), None)
    scheduler.charge(jobs[1], 0.1)
    scheduler.charge(jobs[2], 0.1)
    assert scheduler.next() is jobs[0]


def test_owners_share_evenly_whatever_they_submit(make_job) -> None:
    scheduler = Scheduler(QueueLimits(active=4, jobs=9, tokens=10**6, seconds=1e6))
    many, one = [make_job("greedy") for _ in range(3)], make_job("modest")
    for job in (*many, one):
        scheduler.add(job)
    order = served(scheduler, 60, lambda _: 1.0)
    assert abs(order.count(one) - 30) <= 2
    assert all(abs(order.count(job) - 10) <= 2 for job in many)


def test_an_owner_who_was_served_less_is_admitted_first(make_job) -> None:
    scheduler = Scheduler(QueueLimits(active=1, jobs=9, tokens=10**6, seconds=1e6))
    flood = [make_job("greedy") for _ in range(4)]
    for job in flood:
        scheduler.add(job)
    served(scheduler, 1, lambda _: 5.0)
    modest = make_job("modest")
    scheduler.add(modest)
    scheduler.end(flood[0])
    assert scheduler.next() is modest


def test_priority_decides_who_is_admitted_and_weighs_turns(make_job) -> None:
    scheduler = Scheduler(QueueLimits(active=2, jobs=9, tokens=10**6, seconds=1e6))
    low, plain, urgent = make_job("a", priority=5), make_job("b"), make_job("c", priority=-5)
    for job in (low, plain, urgent):
        scheduler.add(job)
    order = served(scheduler, 80, lambda _: 1.0)
    assert low not in order
    assert 2.5 <= order.count(urgent) / order.count(plain) <= 3.5  # 1.25 ** 5 = 3.05


def test_nobody_starves(make_job) -> None:
    rng = random.Random(0)
    scheduler = Scheduler(QueueLimits(active=3, jobs=99, tokens=10**6, seconds=1e6))
    old = make_job("old")
    scheduler.add(old)
    for i in range(200):
        scheduler.add(make_job(f"new{i}"))
        job = scheduler.next()
        assert job is not None
        scheduler.charge(job, rng.random())
        if job is old:
            break
        scheduler.end(job)
    assert job is old


def test_a_cancelled_job_goes_first_and_a_waiting_one_is_withdrawn(make_job) -> None:
    scheduler = Scheduler(LIMITS)
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        scheduler.add(job)
    scheduler.next()
    jobs[1].cancelled = "test"
    assert scheduler.next() is jobs[1]
    assert scheduler.withdraw(jobs[2])
    assert not scheduler.withdraw(jobs[0])
    assert scheduler.jobs == jobs[:2]


def test_a_rate_follows_what_is_seen() -> None:
    rate = Rate(100.0)
    rate.observe(2.0, 4)
    assert rate.seconds == 0.5
    for _ in range(50):
        rate.observe(8.0, 4)
    assert rate.seconds == pytest.approx(2.0, rel=1e-3)
    rate.observe(1.0, 0)
    assert rate.seconds == pytest.approx(2.0, rel=1e-3)


def test_costs_are_learnt_from_events() -> None:
    costs = CostModel()
    config = AdaptConfig(prefix="full", steps=4, chunks=2, rollouts=3, rollout_tokens=5)
    work = AdaptRequest("text", config)
    costs.observe(work, 100, DocumentRead(100, 1.0))
    step = StepReport(1, *[0.0] * 8, seconds=16.0, rollout_tokens=30)
    costs.observe(work, 100, AdaptationStep(step))
    assert costs.estimate(work, 100) == pytest.approx(1.0 + 4 * 16.0)
    assert costs.estimate(work, 200) == pytest.approx(2.0 + 4 * 26.0)
    short = AdaptRequest("text", config.model_copy(update={"max_seconds": 5.0}))
    assert costs.estimate(short, 200) == 5.0
    asked = AskRequest(cast(Any, None), "?", SamplingConfig(max_tokens=30))
    assert costs.estimate(asked, 100) == pytest.approx(1.0 + 1.0)


def test_the_costs_of_completions_are_learnt_and_estimated() -> None:
    costs = CostModel()
    work = CompletionRequest(((1,) * 128, (1,) * 72), SamplingConfig(max_tokens=5), n=3)
    costs.observe(work, 200, PromptRead(0, 128, 64.0, ()))
    costs.observe(work, 200, PromptRead(1, 72, 99.0, ()))  # too short to tell
    costs.observe(work, 200, PromptRead(0, 128, 99.0, (ScoredToken(b"x"),)))  # more than reading
    costs.observe(work, 200, CompletionEnded(200, 10, Timings(64.0, 0.0, 20.0, 1.0)))
    assert costs.estimate(work, 200) == pytest.approx(200 * 0.5 + 2 * 3 * 5 * 2.0)


def test_a_step_on_spans_does_not_grow_with_the_document() -> None:
    local = AdaptConfig(prefix="local", chunks=8, span_tokens=32, objective="ntp")
    assert step_tokens(local, 1000) == step_tokens(local, 100_000) == 256
    asked = local.model_copy(update={"selection": "query", "spans_as": "answer_in_context"})
    assert step_tokens(asked, 1000) == 1256
    whole = AdaptConfig(prefix="full", objective="ntp")
    assert step_tokens(whole, 1000) == 1000
    assert step_tokens(AdaptConfig(objective="none"), 1000) == 0
