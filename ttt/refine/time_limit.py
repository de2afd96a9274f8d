"""When an adaptation must end, so that its weights can still be judged and its document read."""

import math
import time
from collections.abc import Callable

from refine_server.ttt.interface.events import ShouldStop
from refine_server.ttt.refine import guard


class TimeLimit:
    """Says whether there is time for more work of an adaptation.

    After its last step a document is read once more, under the weights that were chosen, and they
    are judged: that takes as long as the reading and judging in a step, as it was measured last.

    Args:
        seconds: that the adaptation may take from now on; None for any number.
        should_stop: asked, too, with the seconds of the work.
        reads_again: whether anything is read after the last step.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        seconds: float | None,
        should_stop: ShouldStop,
        *,
        reads_again: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._should_stop = clock, should_stop
        self._end = clock() + (math.inf if seconds is None else seconds)
        self._reads_again = reads_again
        self._reading = 0.0
        """Seconds that the reading and judging in the last step took."""
        self._reading_began: float | None = None
        """When that of the present step began; None when it has ended."""

    def begin_reading(self) -> None:
        """Note that a step begins to read the document."""
        self._reading_began = self._clock()

    def end_reading(self) -> None:
        """Note that a step has read the document and judged the weights."""
        assert self._reading_began is not None
        self._reading = self._clock() - self._reading_began
        self._reading_began = None

    def reason(self, seconds: float = 0.0) -> str | None:
        """Return the reason to make no more steps, or None if there is time for ``seconds``."""
        now, last = self._clock(), 0.0
        if self._reads_again:
            present = 0.0 if self._reading_began is None else now - self._reading_began
            last = max(self._reading, present)
        if now + seconds + last > self._end:
            return guard.MAX_SECONDS
        return self._should_stop(seconds)
