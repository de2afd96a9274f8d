"""End a text at the first stop string, although it arrives in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Ends a text before the first stop string, which may arrive in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [s for s in stops if s]
        self.hit = False
        self._held = ""

    def feed(self, text: str) -> str:
        """Take more text; return the part that certainly precedes any stop string."""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self.stops) if at >= 0]
        if found:
            self.hit = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max((self._begun(s) for s in self.stops), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def rest(self) -> str:
        """Return the text that was held back because a stop string might have begun in it."""
        held, self._held = self._held, ""
        return held

    def _begun(self, stop: str) -> int:
        """Return the length of the longest suffix of the held text that begins the stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
