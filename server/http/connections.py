"""Clients that leave before their response, and clients that never finish a request's head."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from refine_server.server.http.errors import ApiError

MAX_HEAD_BYTES = 32 * 1024
"""Longest request line and headers together."""


class ClientDisconnected(ApiError):
    """Nobody receives this response; its status is for the log and the metrics (as in nginx)."""

    def __init__(self) -> None:
        super().__init__(499, "The client closed the connection.", "client_disconnected")


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block if the client closes the connection.

    Args:
        receive: of a request whose body has been read.

    Raises:
        ClientDisconnected: if the block was cancelled.
    """
    with anyio.CancelScope() as scope:
        watching = asyncio.create_task(_cancel_at_disconnect(receive, scope))
        try:
            yield
        finally:
            watching.cancel()
    if scope.cancelled_caught:
        raise ClientDisconnected


async def _cancel_at_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def head_timeout_protocol(seconds: float) -> type[H11Protocol]:
    """Return HTTP/1.1 that closes a connection whose request's head takes longer than ``seconds``.

    Uvicorn closes connections that are idle between requests, but after the first byte of a request
    it waits without end. Bodies have their limit in ``http.middleware.body_limit``.
    """

    class HeadTimeoutProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(seconds, self._close_if_idle, self.cycle)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _close_if_idle(self, last: object) -> None:
            """Close, unless a request followed the ``last`` one or that is still being answered."""
            is_idle = self.cycle is None or self.cycle.response_complete
            if self.cycle is last and is_idle and not self.transport.is_closing():
                self.transport.close()

    return HeadTimeoutProtocol
