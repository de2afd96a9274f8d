"""Steps end early where the answer would come too late otherwise, which a fifth is added to."""

from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.engine.scheduling.job import Job
from refine_server.server.engine.scheduling.step_deadline import StepDeadline
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.interface.requests import AdaptRequest
from refine_server.ttt.programs.encode import EncodedAdapt


class Time:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_job(finish: float, deadline: float) -> Job:
    work = EncodedAdapt(
        request=AdaptRequest("x"), prompt=DocumentPrompt(header=[], document=[0]), query=None
    )
    estimate = Estimate(decode=finish)
    return Job(
        work=work, request_id="r", deliver=lambda _: None, estimate=estimate, deadline=deadline
    )


def reasons(
    job: Job, asked: list[float], seconds: float = 0.0, active: int = 1
) -> list[str | None]:
    """What is said at each of these times of work that takes some seconds."""
    clock = Time()
    deadline = StepDeadline(job, lambda: active, clock)
    said = []
    for clock.now in asked:
        said.append(deadline(seconds))
    return said


def test_a_step_is_made_while_it_and_the_answer_fit() -> None:
    job = make_job(finish=10, deadline=60)
    assert reasons(job, [20, 38, 39], seconds=10) == [None, None, "deadline"]


def test_a_step_is_left_when_only_the_answer_fits() -> None:
    job = make_job(finish=10, deadline=60)
    assert reasons(job, [39, 48, 49]) == [None, None, "deadline"]


def test_an_answer_takes_longer_beside_others() -> None:
    job = make_job(finish=10, deadline=60)
    assert reasons(job, [24], active=3) == [None]
    assert reasons(job, [25], active=3) == ["deadline"]


def test_a_reason_from_elsewhere_comes_first() -> None:
    job = make_job(finish=0, deadline=60)
    job.stop_reason = "shutdown"
    assert reasons(job, [0.0]) == ["shutdown"]
