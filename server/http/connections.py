"""What uvicorn leaves open: a connection that never ends the head of its request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 32 * 1024
"""Request line and headers."""


def impatient_protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 whose clients get so many seconds for the head of a request, then are cut off.

    Uvicorn closes connections that are idle between requests, but one byte is enough for it to
    wait for ever. Bodies have their limit in ``middleware.BodyLimit``.
    """

    class Impatient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_timer()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            self._forget_timer()
            self._timer = self.loop.call_later(seconds, self._give_up, self.cycle)

        def _forget_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _give_up(self, last: object) -> None:
            """Close, unless a request came after the ``last`` one or that is still answered."""
            is_waiting = self.cycle is None or self.cycle.response_complete
            if self.cycle is last and is_waiting and not self.transport.is_closing():
                self.transport.close()

    return Impatient
