"""When an adaptation must make no more steps, so that its answer comes in time."""

import time
from collections.abc import Callable

from refine_server.server.engine.scheduling.job import Job

DEADLINE = "deadline"
"""Another step would have left too little time for the answer."""
MARGIN = 1.2
"""The end may take this many times longer than it is expected to."""


class StepDeadline:
    """Is asked before every step of a job's adaptation, and in it, whether there is time for it.

    Args:
        job: adapts; its estimate says how long its end takes when it is alone.
        active_jobs: counts the jobs that take turns, it among them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        active_jobs: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._active_jobs, self._clock = job, active_jobs, clock

    def __call__(self, seconds: float) -> str | None:
        """Return the reason to make no more steps, or None if there is time for ``seconds``."""
        if self._job.stop_reason is not None:
            return self._job.stop_reason
        finish = MARGIN * self._job.estimate.finish * self._active_jobs()
        return DEADLINE if self._clock() + seconds + finish > self._job.deadline else None
