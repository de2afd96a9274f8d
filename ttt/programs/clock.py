"""The seconds of a program's phases."""

import time

from refine_server.ttt.interface.reports import Timings


class Clock:
    """Measures the seconds of each phase, and until the first token."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.started = self._last = time.monotonic()
        self.first_token = 0.0

    def lap(self, phase: str) -> float:
        """End a phase that began when the last one ended, and return its seconds."""
        now = time.monotonic()
        seconds = self.laps[phase] = now - self._last
        self._last = now
        return seconds

    def record_token(self) -> None:
        """Record the time of the first token, if it is the first."""
        self.first_token = self.first_token or time.monotonic() - self.started

    def timings(self) -> Timings:
        """Return the phases' seconds; zero for a phase that did not run."""
        self.record_token()  # there may have been no token
        prefill, adapt, decode = (self.laps.get(p, 0.0) for p in ("prefill", "adapt", "decode"))
        return Timings(
            prefill_seconds=prefill,
            adapt_seconds=adapt,
            decode_seconds=decode,
            time_to_first_token_seconds=self.first_token,
        )
