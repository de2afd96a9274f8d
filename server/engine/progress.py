"""How long a run will still take, from what it was estimated to cost and how it goes."""

from dataclasses import dataclass

from refine_server.server.engine.events import Accepted, Phase, Progress, QueueMoved, RunEvent
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    CompletionDelta,
    CompletionEnded,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
    PromptRead,
)


@dataclass(slots=True)
class _Phase:
    """A phase that runs: when it began, and how much of it is done."""

    name: Phase
    began: float
    done: float = 0.0
    """Share that is done, 0 to 1."""
    step: float = 0.0
    """Share that is done from one event to the next."""
    seen: float = 0.0
    """When that was known."""


class ProgressTracker:
    """Follows the events of one run and says how many seconds it will still take.

    The phase that runs is expected to go on as it went so far, which includes the turns of other
    work; the phases after it are expected to take what was estimated, times as much as this phase
    took longer than its own estimate.

    Args:
        estimate: of the work, None if nothing was measured: then only phases that run are known.
        now: when the work was accepted, by the clock of all later calls.
    """

    def __init__(self, estimate: Estimate | None, now: float) -> None:
        self._estimate = estimate
        self._accepted = now
        self._phase = _Phase("queued", now, seen=now)
        self._waits: float | None = None
        """Seconds until the end, as the queue told them when it last moved."""
        self._slowness = 1.0
        """Seconds of the phases that ran, as a multiple of those that were estimated."""
        self.steps = 0
        """The most steps that are made; 0 until they begin."""

    @property
    def phase(self) -> Phase:
        """What is being done."""
        return self._phase.name

    def update(self, event: RunEvent, now: float) -> None:
        """Take the next event."""
        match event:
            case Accepted() | QueueMoved():
                self._waits, self._phase.seen = event.seconds_left, now
            case DocumentReading():
                self._go_on("reading", event.tokens_read / max(event.document_tokens, 1), now)
            case DocumentRead():
                adapts = self._estimate is not None and self._estimate.adapt
                self._begin("adapting" if adapts else "answering", now)
            case AdaptationStarted(steps):
                self.steps = steps
                self._begin("adapting", now)
            case AdaptationStep(report):
                self._go_on("adapting", report.step / max(self.steps, report.step), now)
                if report.step == self.steps:
                    self._begin("judging", now)
            case AdaptationEnded() | PromptRead() | AnswerDelta() | CompletionDelta():
                self._begin("answering", now)
            case AnswerCompleted() | CompletionEnded() | DocumentAdapted():
                self._estimate = Estimate()
                self._begin("answering", now)

    def progress(self, now: float) -> Progress:
        """Return how far the run is."""
        seconds_left = self.seconds_left(now)
        return Progress(phase=self.phase, seconds=now - self._accepted, seconds_left=seconds_left)

    def seconds_left(self, now: float) -> float | None:
        """Return the estimated seconds until the end of the run; None if nothing is known.

        Where nothing was measured they are those of the phase that runs.
        """
        phase = self._phase
        if phase.name == "queued":
            return None if self._waits is None else max(self._waits - (now - phase.seen), 0.0)
        rest = self._rest_of(phase, now)
        if rest is None or self._estimate is None:
            return rest
        return rest + self._slowness * _seconds_after(phase.name, self._estimate)

    def _rest_of(self, phase: _Phase, now: float) -> float | None:
        """Return the seconds that are left of the phase that runs."""
        since = now - phase.seen
        if phase.done:
            pace = (phase.seen - phase.began) / phase.done
            # What was begun may take longer than it should; what follows it is still to be done.
            left = max((1.0 - phase.done) * pace - since, (1.0 - phase.done - phase.step) * pace)
        elif self._estimate is not None:
            left = _seconds_of(phase.name, self._estimate) * self._slowness - since
        else:
            return None
        return max(left, 0.0)

    def _go_on(self, name: Phase, done: float, now: float) -> None:
        """Record that so much of a phase is done, from its own beginning on."""
        if self.phase != name:
            self._begin(name, now)
        phase = self._phase
        phase.step, phase.done, phase.seen = done - phase.done, done, now
        if self._estimate is not None:
            estimated = _seconds_of(name, self._estimate) * done
            if estimated > 0.0:
                self._slowness = (now - phase.began) / estimated

    def _begin(self, name: Phase, now: float) -> None:
        if self.phase != name:
            self._phase = _Phase(name, now, seen=now)


def _seconds_of(phase: Phase, estimate: Estimate) -> float:
    """Return the estimated seconds of a phase."""
    match phase:
        case "queued":
            return 0.0
        case "reading":
            return estimate.read
        case "adapting":
            return estimate.adapt
        case "judging":
            return estimate.reread
        case "answering":
            return estimate.decode


def _seconds_after(phase: Phase, estimate: Estimate) -> float:
    """Return the estimated seconds of the phases after one."""
    match phase:
        case "queued":
            return estimate.total
        case "reading":
            return estimate.adapt + estimate.finish
        case "adapting":
            return estimate.finish
        case "judging":
            return estimate.decode
        case "answering":
            return 0.0
