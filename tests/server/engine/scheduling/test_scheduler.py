"""Admission and the choice of the next job, without threads or a clock."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import pytest
from typing_extensions import override

from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.engine.scheduling.job import Job, JobStatus
from refine_server.server.engine.scheduling.scheduler import QueueLimits, Scheduler
from refine_server.server.http.errors import ApiError
from refine_server.ttt.batching import Call, Operation
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest
from refine_server.ttt.programs.encode import EncodedAsk
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt

LIMITS = QueueLimits(active=2, jobs=3, seconds=100.0)


def limits(active: int) -> QueueLimits:
    """Limits that only the number of active jobs reaches."""
    return QueueLimits(active=active, jobs=99, seconds=1e6)


def make_job(
    owner: str = "a",
    seconds: float = 1.0,
    priority: int = 0,
    ask: bool = False,
    steps: float = 0.0,
    deadline: float = math.inf,
) -> Job:
    """Make a job with an estimated duration, to which its steps add."""
    ids = [0] * 10
    if ask:
        request = AskRequest(cast(Any, None), "?", owner=owner)
        work: EncodedAsk | EncodedAdapt = EncodedAsk(request=request, query=ids)
    else:
        prompt = DocumentPrompt(header=[], document=ids)
        work = EncodedAdapt(request=AdaptRequest("x", owner=owner), prompt=prompt, query=None)
    return Job(
        work=work,
        request_id="r",
        deliver=lambda _: None,
        priority=priority,
        estimate=Estimate(read=seconds, adapt=steps),
        deadline=deadline,
    )


def served(scheduler: Scheduler, turns: int, seconds: Callable[[Job], float]) -> list[Job]:
    order = []
    for _ in range(turns):
        job = scheduler.next()
        assert job is not None
        order.append(job)
        scheduler.charge(job, seconds(job))
    return order


def test_the_queue_is_bounded_by_count() -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(5):  # two of them find a free place among the active
        scheduler.add(make_job(), now=0.0)
    with pytest.raises(ApiError) as refused:
        scheduler.require_place(reuses_adaptation=False)
    assert refused.value.status_code == 429
    scheduler.next()
    assert (len(scheduler.active), len(scheduler.waiting)) == (2, 3)
    with pytest.raises(ApiError):
        scheduler.add(make_job(), now=0.0)


def test_the_queue_is_bounded_by_seconds() -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(3):
        scheduler.add(make_job(), now=0.0)
        scheduler.next()
    with pytest.raises(ApiError) as refused:
        scheduler.add(make_job(seconds=99.5), now=0.0)
    assert refused.value.status_code == 429
    assert refused.value.retry_after == 2
    scheduler.add(make_job(ask=True, seconds=99.5), now=0.0)  # its adaptation was paid for


def test_a_job_that_cannot_end_in_time_is_refused_before_anything_is_paid() -> None:
    scheduler = Scheduler(limits(active=4))
    scheduler.add(make_job(seconds=40), now=100.0)
    with pytest.raises(ApiError) as refused:
        scheduler.add(make_job(seconds=40, deadline=160.0), now=100.0)  # both would take 80 s
    assert (refused.value.status_code, refused.value.retry_after) == (429, 20)
    scheduler.add(make_job(seconds=40, deadline=181.0), now=100.0)
    assert len(scheduler.jobs) == 2


def test_others_take_no_more_of_a_short_jobs_time_than_it_needs_itself() -> None:
    scheduler = Scheduler(limits(active=4))
    scheduler.add(make_job(seconds=1000), now=0.0)
    scheduler.add(make_job(seconds=2, deadline=5.0), now=0.0)
    with pytest.raises(ApiError):
        scheduler.add(make_job(seconds=2, deadline=5.0), now=0.0)


def test_a_job_that_is_about_to_end_takes_no_time() -> None:
    scheduler = Scheduler(limits(active=4))
    leaving = make_job(seconds=1000)
    scheduler.add(leaving, now=0.0)
    scheduler.next()
    leaving.status = JobStatus.CANCELLING
    scheduler.add(make_job(seconds=3, deadline=5.0), now=0.0)


def test_steps_that_can_be_left_out_refuse_nothing() -> None:
    scheduler = Scheduler(limits(active=4))
    for _ in range(3):
        scheduler.add(make_job(seconds=5, steps=40, deadline=60.0), now=0.0)


def test_a_job_alone_may_try_what_its_time_limit_hardly_allows() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(make_job(seconds=90, deadline=60.0), now=0.0)


def test_the_earliest_deadline_is_admitted_first_within_an_owners_share() -> None:
    scheduler = Scheduler(limits(active=1))
    running, late, early = (make_job(deadline=d) for d in (999.0, 500.0, 400.0))
    for job in (running, late, early):
        scheduler.add(job, now=0.0)
        scheduler.next()
    scheduler.end(running)
    assert scheduler.next() is early


def test_a_job_over_the_bounds_is_served_when_nothing_waits() -> None:
    scheduler = Scheduler(LIMITS)
    huge = make_job(seconds=10**6)
    scheduler.add(huge, now=0.0)
    assert scheduler.next() is huge


def test_questions_about_adapted_documents_have_places_of_their_own() -> None:
    scheduler = Scheduler(LIMITS)
    for _ in range(5):
        scheduler.add(make_job(), now=0.0)
        scheduler.next()
    scheduler.add(make_job(ask=True), now=0.0)
    for _ in range(2):
        scheduler.add(make_job(ask=True), now=0.0)
    with pytest.raises(ApiError):
        scheduler.add(make_job(ask=True), now=0.0)


def test_retry_after_is_when_the_first_job_ends() -> None:
    scheduler = Scheduler(LIMITS)
    first, second = make_job(seconds=10.0), make_job(seconds=30.0)
    for job in (first, second):
        scheduler.add(job, now=0.0)
    scheduler.next()
    assert scheduler.retry_after(0.0) == 20  # the two take turns
    scheduler.charge(first, 4.0)
    assert scheduler.retry_after(0.0) == 12
    assert scheduler.retry_after(50.0) == 50
    scheduler.charge(first, 100.0)
    assert scheduler.retry_after(0.0) == 1


def test_short_turns_pass_between_long_ones() -> None:
    scheduler = Scheduler(LIMITS)
    long, short = make_job("a"), make_job("b")
    for job in (long, short):
        scheduler.add(job, now=0.0)
    order = served(scheduler, 40, lambda job: 1.0 if job is long else 0.1)
    assert 8 <= order.count(short) / max(order.count(long), 1) <= 12


class Step(Operation[None]):
    """An operation that benefits from large batches."""

    name = "step"
    waits_for_peers = True

    @property
    @override
    def max_batch_size(self) -> int:
        return 8

    @override
    def can_batch_with(self, head: Self) -> bool:
        return True

    @classmethod
    @override
    def run_batch(cls, operations: Sequence[Self]) -> list[None]:
        return [None for _ in operations]


class Token(Step):
    """A short operation, which does not wait for others."""

    name = "token"
    waits_for_peers = False


def active_with(*operations: Operation[Any] | None) -> tuple[Scheduler, list[Job]]:
    """Make a scheduler with one active job for each operation, all served equally."""
    scheduler = Scheduler(limits(active=8))
    jobs = [make_job() for _ in operations]
    for job in jobs:
        scheduler.add(job, now=0.0)
    scheduler.next()
    for job, operation in zip(jobs, operations, strict=True):
        scheduler.active[job].operation = operation
        scheduler.charge(job, 1.0)
    return scheduler, jobs


def test_a_step_waits_for_jobs_that_can_join_its_batch() -> None:
    """Otherwise the first job to finish reading would step alone, and then each of the others."""
    reading = Call(lambda: None)
    scheduler, jobs = active_with(Step(), reading, reading)
    scheduler.charge(jobs[1], 0.1)  # slightly more than the one that steps
    scheduler.charge(jobs[2], 0.2)
    for job in jobs[1:]:
        assert scheduler.next() is job
        scheduler.active[job].operation = Step()
        scheduler.charge(job, 0.1)
    assert scheduler.next() is jobs[0]
    assert scheduler.batch(jobs[0], 8) == jobs


def test_a_step_does_not_wait_for_jobs_more_than_a_turn_ahead() -> None:
    scheduler, jobs = active_with(Step(), Call(lambda: None))
    scheduler.charge(jobs[1], 1.0)
    assert scheduler.next() is jobs[1]
    scheduler.charge(jobs[1], 0.01)
    assert scheduler.next() is jobs[0]


def test_a_new_job_starts_before_a_step() -> None:
    scheduler, jobs = active_with(Step(), None)
    assert scheduler.next() is jobs[1]


def test_a_token_waits_for_no_other_job() -> None:
    """It is short, and would have to wait for a document to be read."""
    scheduler, jobs = active_with(Token(), Call(lambda: None), None)
    scheduler.charge(jobs[1], 0.1)
    scheduler.charge(jobs[2], 0.1)
    assert scheduler.next() is jobs[0]


def test_owners_share_evenly_whatever_they_submit() -> None:
    scheduler = Scheduler(limits(active=4))
    many, one = [make_job("greedy") for _ in range(3)], make_job("modest")
    for job in (*many, one):
        scheduler.add(job, now=0.0)
    order = served(scheduler, 60, lambda _: 1.0)
    assert abs(order.count(one) - 30) <= 2
    assert all(abs(order.count(job) - 10) <= 2 for job in many)


def test_an_owner_who_was_served_less_is_admitted_first() -> None:
    scheduler = Scheduler(limits(active=1))
    flood = [make_job("greedy") for _ in range(4)]
    for job in flood:
        scheduler.add(job, now=0.0)
    served(scheduler, 1, lambda _: 5.0)
    modest = make_job("modest")
    scheduler.add(modest, now=0.0)
    scheduler.end(flood[0])
    assert scheduler.next() is modest


def test_priority_decides_who_is_admitted_and_weighs_turns() -> None:
    scheduler = Scheduler(limits(active=2))
    low, plain, urgent = make_job("a", priority=5), make_job("b"), make_job("c", priority=-5)
    for job in (low, plain, urgent):
        scheduler.add(job, now=0.0)
    order = served(scheduler, 80, lambda _: 1.0)
    assert low not in order
    assert 2.5 <= order.count(urgent) / order.count(plain) <= 3.5  # 1.25 ** 5 = 3.05


def test_nobody_starves() -> None:
    rng = random.Random(0)
    scheduler = Scheduler(limits(active=3))
    old = make_job("old")
    scheduler.add(old, now=0.0)
    for i in range(200):
        scheduler.add(make_job(f"new{i}"), now=0.0)
        job = scheduler.next()
        assert job is not None
        scheduler.charge(job, rng.random())
        if job is old:
            break
        scheduler.end(job)
    assert job is old


def test_a_new_job_works_first_for_a_moment() -> None:
    """It starts and reads its prompt before the next piece of a long job."""
    scheduler = Scheduler(limits(active=3))
    old, new = make_job("a"), make_job("b")
    scheduler.add(old, now=0.0)
    served(scheduler, 5, lambda _: 1.0)
    scheduler.add(new, now=0.0)
    seconds = iter([0.01, 0.3, 0.3, 0.3])  # started, prompt read, two tokens
    order = served(scheduler, 5, lambda job: next(seconds) if job is new else 0.9)
    assert order == [new, new, new, old, new]


def test_a_new_job_is_charged_for_its_head_start() -> None:
    scheduler = Scheduler(limits(active=3))
    old, new = make_job("a"), make_job("b")
    scheduler.add(old, now=0.0)
    served(scheduler, 5, lambda _: 1.0)
    scheduler.add(new, now=0.0)
    order = served(scheduler, 40, lambda _: 0.1)
    assert abs(order.count(old) - order.count(new)) <= 1


def test_less_urgent_jobs_have_no_head_start() -> None:
    scheduler = Scheduler(limits(active=3))
    old, new = make_job("a"), make_job("b", priority=1)
    for job in (old, new):
        scheduler.add(job, now=0.0)
    assert served(scheduler, 1, lambda _: 0.1) == [old]


def test_new_jobs_take_no_more_than_half_of_the_time_from_an_old_one() -> None:
    scheduler = Scheduler(limits(active=3))
    old = make_job("old")
    scheduler.add(old, now=0.0)
    seconds = {"old": 0.0, "new": 0.0}
    for i in range(300):
        if i % 2 == 0:
            scheduler.add(make_job(f"new{i}"), now=0.0)
        job = scheduler.next()
        assert job is not None
        scheduler.charge(job, 0.4)
        seconds["old" if job is old else "new"] += 0.4
        if job is not old:
            scheduler.end(job)
    assert seconds["old"] > 0.4 * sum(seconds.values())


def test_a_batch_that_was_begun_goes_on_together() -> None:
    """Its jobs take their turns as one, and no other job joins it."""
    scheduler, jobs = active_with(Step(), Step(), None)
    batch = scheduler.batch(jobs[0], 8)
    assert batch == jobs[:2]
    for job in batch:
        scheduler.charge(job, 0.1)
    scheduler.pause(batch)
    scheduler.active[jobs[2]].operation = Step()
    assert scheduler.batch(jobs[1], 8) == batch
    assert scheduler.batch(jobs[2], 8) == [jobs[2]]
    scheduler.end(jobs[0])
    assert scheduler.batch(jobs[1], 8) == [jobs[1]]
    scheduler.requeue(jobs[1], Step())
    assert set(scheduler.batch(jobs[1], 8)) == set(jobs[1:])


def test_a_begun_step_does_not_wait_for_jobs_that_can_join_it_no_more() -> None:
    scheduler, jobs = active_with(Step(), Call(lambda: None))
    scheduler.charge(jobs[1], 0.1)
    scheduler.pause(jobs[:1])
    assert scheduler.next() is jobs[0]


def test_a_cancelled_job_leaves_its_batch_alone() -> None:
    scheduler, jobs = active_with(Step(), Step())
    scheduler.pause(jobs)
    jobs[1].status = JobStatus.CANCELLING
    head = scheduler.next()
    assert head is jobs[1]
    assert scheduler.batch(head, 8) == [head]
    scheduler.end(head)
    assert scheduler.batch(jobs[0], 8) == [jobs[0]]


def test_a_cancelled_job_goes_first_and_a_waiting_one_is_removed() -> None:
    scheduler = Scheduler(LIMITS)
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        scheduler.add(job, now=0.0)
    scheduler.next()
    jobs[1].status = JobStatus.CANCELLING
    assert scheduler.next() is jobs[1]
    assert scheduler.remove(jobs[2])
    assert not scheduler.remove(jobs[0])
    assert scheduler.jobs == jobs[:2]
