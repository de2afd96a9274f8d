"""Three long jobs at once, each of which fits into the time limit alone: no work for nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.engine.scheduling.job import Job
from refine_server.server.engine.scheduling.scheduler import QueueLimits, Scheduler
from refine_server.server.engine.scheduling.step_deadline import StepDeadline
from refine_server.server.http.errors import ApiError
from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.interface.requests import AdaptRequest
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt

LIMIT = 60.0
PIECE = 0.35


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Seconds that a document needs alone."""

    read: float
    step: float
    steps: int
    finish: float

    @property
    def estimate(self) -> Estimate:
        return Estimate(read=self.read, adapt=self.step * self.steps, decode=self.finish)


@dataclass
class Server:
    """A scheduler and a clock that pieces of work move on."""

    slowness: float = 1.0
    """How many times longer work takes than it was expected to."""
    now: float = 0.0
    scheduler: Scheduler = field(
        default_factory=lambda: Scheduler(QueueLimits(active=8, jobs=99, seconds=1e6))
    )
    programs: dict[Job, Iterator[None]] = field(default_factory=dict)
    answered: dict[Job, float] = field(default_factory=dict)

    def submit(self, needs: Needs) -> Job:
        work = EncodedAdapt(
            request=AdaptRequest("x"), prompt=DocumentPrompt(header=[], document=[0]), query=None
        )
        job = Job(
            work=work,
            request_id="r",
            deliver=lambda _: None,
            estimate=needs.estimate,
            deadline=self.now + LIMIT,
        )
        self.scheduler.add(job, self.now)
        self.programs[job] = self.program(job, needs)
        return job

    def program(self, job: Job, needs: Needs) -> Iterator[None]:
        """Read, make steps in pieces while there is time, and answer."""
        deadline = StepDeadline(job, lambda: len(self.scheduler.active), lambda: self.now)
        yield from self.work(needs.read)
        longest = 0.0
        for _ in range(needs.steps):
            if deadline(longest) is not None:
                break
            began = self.now
            for _piece in self.work(needs.step):
                if deadline(0.0) is not None:
                    break
                yield
            longest = max(longest, self.now - began)
        yield from self.work(needs.finish)

    def work(self, seconds: float) -> Iterator[None]:
        left = seconds * self.slowness
        while left > 0:
            self.now += min(left, PIECE)
            left -= PIECE
            yield

    def run(self) -> None:
        while (job := self.scheduler.next()) is not None:
            began = self.now
            ended = next(self.programs[job], "ended") == "ended"
            self.scheduler.charge(job, self.now - began)
            self.scheduler.requeue(job, Call(lambda: None))
            if ended:
                self.scheduler.end(job)
                self.answered[job] = self.now


SHAPES = {
    "reads long": Needs(read=20, step=2.5, steps=8, finish=3),
    "steps long": Needs(read=8, step=4, steps=7, finish=9),
    "reads again": Needs(read=12, step=2, steps=8, finish=15),
}


@pytest.mark.parametrize("slowness", [0.8, 1.0, 1.1])
@pytest.mark.parametrize("needs", SHAPES.values(), ids=SHAPES)
def test_three_at_once_are_answered_in_time_or_refused_at_once(
    needs: Needs, slowness: float
) -> None:
    server, refused = Server(slowness=slowness), list[int]()
    assert 39 <= needs.estimate.total <= 47
    for _ in range(3):
        try:
            server.submit(needs)
        except ApiError as error:
            refused.append(error.status_code)
    server.run()
    assert refused in ([], [429])
    assert len(server.answered) == 3 - len(refused)
    assert all(ended <= LIMIT for ended in server.answered.values())


def test_alone_it_makes_all_its_steps() -> None:
    server, needs = Server(), SHAPES["steps long"]
    job = server.submit(needs)
    server.run()
    assert server.answered[job] == pytest.approx(needs.estimate.total)
