"""The seconds of a program's phases."""

import time
from typing import Literal

from refine_server.ttt.interface.reports import AdaptationReport, Timings

Phase = Literal["prefill", "adapt", "decode", "other"]
"""What a program does; "other" is reported by no name of its own."""


class Clock:
    """Measures the seconds of each phase, and until the first token."""

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = {}
        self.started = self._last = time.monotonic()
        self.first_token = 0.0

    def lap(self, phase: Phase) -> float:
        """End a part of a phase that began when the last one ended, and return its seconds."""
        now = time.monotonic()
        seconds = now - self._last
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self._last = now
        return seconds

    def record_token(self) -> None:
        """Record the time of the first token, if it is the first."""
        self.first_token = self.first_token or time.monotonic() - self.started

    def timings(self, adapted: AdaptationReport | None = None) -> Timings:
        """Return the phases' seconds; zero for a phase that did not run.

        Args:
            adapted: the adaptation that the program made, whose evaluations are part of its phase;
                None if it made none.
        """
        self.record_token()  # there may have been no token
        adapt = self.seconds.get("adapt", 0.0)
        judge = sum(result.seconds for result in adapted.held_out) if adapted else 0.0
        return Timings(
            prefill_seconds=self.seconds.get("prefill", 0.0),
            adapt_seconds=max(adapt - judge, 0.0),
            judge_seconds=min(judge, adapt),
            decode_seconds=self.seconds.get("decode", 0.0),
            time_to_first_token_seconds=self.first_token,
        )
