"""Work in pieces, and how long a piece may be, so that nobody waits long for its end."""

import time
from collections.abc import Callable, Generator
from typing import Literal, TypeVar

R = TypeVar("R")

Pieces = Generator[None, None, R]
"""Work in pieces, with a result of type R: it yields between two of them, and whoever runs it may
do other work there. A piece may run in another thread than the one before it."""

MIN_TOKENS = 64
"""The fewest tokens of a piece."""
ALONE_TOKENS = 256
"""Tokens of a piece while there is no other work. Smaller ones cost more: half as many 12 % on
SmolLM2."""
PIECE_WEIGHTS = {"cpu": 2**35}
"""Tokens times parameters of a piece while there is no other work, where that is more than
``ALONE_TOKENS``, by the type of the device: about half a second of its time."""
OTHER_DEVICES = 2**46
"""The same for devices that are not listed, which are made for it: a forward's 2**47 operations at
some 3e14 a second. Each piece launches all its kernels anew, so shorter ones cost more."""
SHARED_SECONDS = 0.35
"""Seconds of a piece while there is other work, if it has at least ``MIN_TOKENS`` then."""
EMA_WEIGHT = 0.3
"""Weight of the newest measurement in a speed's moving average."""

PieceKind = Literal["read", "step"]
"""What a piece does: it reads tokens, or reads them and computes their gradient afterwards."""


def run_pieces(pieces: Pieces[R]) -> R:
    """Run all pieces of some work, and return its result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: R = end.value
            return result


def timed(pieces: Pieces[R], synchronize: Callable[[], None]) -> Pieces[tuple[R, float]]:
    """Run some work; return its result and its seconds, without what ran between its pieces.

    Args:
        pieces: the work.
        synchronize: waits until the device has done what a piece launched.
    """
    seconds = 0.0
    try:
        while True:
            began = time.monotonic()
            try:
                next(pieces)
            except StopIteration as end:
                synchronize()
                return end.value, seconds + time.monotonic() - began
            synchronize()
            seconds += time.monotonic() - began
            yield
    finally:
        pieces.close()


class Pace:
    """How many tokens a piece of work has: fewer while other work waits for its end.

    Without other work the numbers depend on the model alone, so that the same request gives the
    same result; with other work they follow from the speed that was measured.

    Args:
        parameters: how many the model has.
        device: the type of its device.
    """

    def __init__(self, parameters: int, device: str) -> None:
        self.is_shared: Callable[[], bool] = lambda: False
        """Whether there is other work; set by whoever runs the pieces."""
        tokens = PIECE_WEIGHTS.get(device, OTHER_DEVICES) // max(parameters, 1)
        self._longest = max(ALONE_TOKENS, tokens // MIN_TOKENS * MIN_TOKENS)
        self._seconds: dict[tuple[PieceKind, int], float] = {}  # of one token

    def tokens(self, kind: PieceKind, layers: int) -> int:
        """Return the most tokens that the next piece should have, of all rows together.

        Args:
            kind: what the piece does.
            layers: how many layers it runs.
        """
        longest = self._longest
        if not self.is_shared():
            return longest
        seconds = self._seconds.get((kind, layers))
        tokens = longest // 2 if seconds is None else int(SHARED_SECONDS / seconds)
        return min(max(tokens // MIN_TOKENS * MIN_TOKENS, MIN_TOKENS), longest)

    def tokens_of_row(self, kind: PieceKind, layers: int, rows: int) -> int:
        """Return ``tokens`` for each of some rows: at least ``MIN_TOKENS``, in multiples of it."""
        return max(self.tokens(kind, layers) // rows // MIN_TOKENS * MIN_TOKENS, MIN_TOKENS)

    def observe(self, kind: PieceKind, layers: int, tokens: int, seconds: float) -> None:
        """Note that a piece of ``tokens`` tokens took ``seconds``."""
        if tokens < MIN_TOKENS // 2:
            return  # what any pass costs, not what a token costs
        new = seconds / tokens
        old = self._seconds.setdefault((kind, layers), new)
        self._seconds[kind, layers] = old + EMA_WEIGHT * (new - old)
