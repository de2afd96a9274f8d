"""How long a run will still take, without a clock or a model."""

import pytest

from refine_server.server.engine.events import Accepted, Progress, QueueMoved
from refine_server.server.engine.progress import ProgressTracker
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.ttt.interface.events import (
    AdaptationStarted,
    AdaptationStep,
    AnswerDelta,
    DocumentRead,
    DocumentReading,
)
from support.fake_backend import step_report

ESTIMATE = Estimate(read=10.0, adapt=40.0, reread=10.0, decode=5.0)


def tracker(estimate: Estimate | None = ESTIMATE) -> ProgressTracker:
    return ProgressTracker(estimate, now=100.0)


def test_in_the_queue_the_seconds_count_down_from_what_the_queue_told_last() -> None:
    run = tracker()
    run.update(Accepted(queue_position=2, estimate=ESTIMATE, seconds_left=90.0), 100.0)
    assert run.progress(130.0) == Progress(phase="queued", seconds=30.0, seconds_left=60.0)
    run.update(QueueMoved(queue_position=1, seconds_left=70.0), 131.0)
    assert run.seconds_left(133.0) == 68.0
    assert run.seconds_left(300.0) == 0.0


def test_reading_goes_on_at_the_pace_that_it_had() -> None:
    run = tracker()
    run.update(DocumentReading(0, 1000), 100.0)
    assert run.seconds_left(100.0) == 65.0  # as estimated
    run.update(DocumentReading(250, 1000), 105.0)  # twice as slow as estimated
    assert run.progress(105.0).phase == "reading"
    assert run.seconds_left(105.0) == pytest.approx(15.0 + 2 * 55.0)


def test_steps_go_on_at_the_pace_that_they_had() -> None:
    run = tracker()
    run.update(DocumentRead(1000, 10.0), 110.0)
    run.update(AdaptationStarted(4), 110.0)
    assert (run.phase, run.steps) == ("adapting", 4)
    assert run.seconds_left(110.0) == 55.0
    run.update(AdaptationStep(step_report(1)), 115.0)  # twice as fast as estimated
    assert run.seconds_left(115.0) == pytest.approx(15.0 + 7.5)
    assert run.seconds_left(118.0) == pytest.approx(12.0 + 7.5)
    assert run.seconds_left(130.0) == pytest.approx(10.0 + 7.5)  # two steps are still to be made


def test_weights_are_judged_after_the_last_step_and_then_it_answers() -> None:
    run = tracker()
    run.update(AdaptationStarted(1), 100.0)
    run.update(AdaptationStep(step_report(1)), 140.0)
    assert run.progress(142.0) == Progress(phase="judging", seconds=42.0, seconds_left=13.0)
    run.update(AnswerDelta("x"), 150.0)
    assert run.progress(151.0) == Progress(phase="answering", seconds=51.0, seconds_left=4.0)
    assert run.seconds_left(200.0) == 0.0


def test_a_document_that_was_read_before_is_adapted_to_at_once() -> None:
    run = tracker()
    run.update(DocumentRead(1000, 0.0, is_cached=True), 100.0)
    assert run.seconds_left(100.0) == 55.0
    run = tracker(Estimate(read=10.0, decode=5.0))
    run.update(DocumentRead(1000, 0.0, is_cached=True), 100.0)
    assert run.progress(100.0) == Progress(phase="answering", seconds=0.0, seconds_left=5.0)


def test_where_nothing_was_measured_only_the_phase_that_runs_is_known() -> None:
    run = tracker(None)
    assert run.seconds_left(100.0) is None
    run.update(DocumentReading(0, 1000), 100.0)
    assert run.seconds_left(101.0) is None
    run.update(DocumentReading(500, 1000), 102.0)
    assert run.seconds_left(102.0) == 2.0
    run.update(AdaptationStarted(4), 110.0)
    assert run.seconds_left(110.0) is None
    run.update(AdaptationStep(step_report(2)), 120.0)
    assert run.seconds_left(120.0) == 10.0
