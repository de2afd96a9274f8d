"""Clients that leave before their response, that only stop sending, or never finish a head."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import h11
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from refine_server.server.http.errors import ApiError

MAX_HEAD_BYTES = 32 * 1024
"""Longest request line and headers together."""
FILLER = "filler"
"""Name, in the state of a request, of bytes that may stand between any two parts of its response.
Probes send them once the response has begun."""
PROBE_SECONDS = (0.0, 0.1, 1.0)
"""When a client that has stopped sending is probed, after that; no client gets many probes."""


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


def http_protocol(head_seconds: float) -> type[H11Protocol]:
    """Return HTTP/1.1 with what uvicorn's lacks.

    It closes a connection whose request's head takes longer than ``head_seconds``: uvicorn closes
    connections that are idle between requests, but after the first byte of a request it waits
    without end. Bodies have their limit in ``http.middleware.body_limit``.

    It answers a client that closed only its own direction after a request. A client that left looks
    the same, until something is sent to it: then its machine resets the connection. The probes are
    interim responses, which every client of HTTP/1.1 has to skip (RFC 9110, section 15.2), and in
    a stream its filler.
    """

    class Protocol(H11Protocol):
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

        def eof_received(self) -> bool:  # type: ignore[override]
            """Return whether to leave the connection open for a response."""
            cycle = self.cycle
            if cycle is None or cycle.response_complete or cycle.more_body:
                return False
            if cycle.scope["http_version"] == "1.0":  # which has no interim responses
                return False
            cycle.keep_alive = False
            for seconds in PROBE_SECONDS:
                self.loop.call_later(seconds, self._probe, cycle)
            return True

        def _probe(self, cycle: RequestResponseCycle) -> None:
            if cycle.response_complete or cycle.disconnected or self.transport.is_closing():
                return
            if not cycle.response_started:
                interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
                self.transport.write(self.conn.send(interim))
            elif filler := cycle.scope["state"].get(FILLER):
                self.transport.write(self.conn.send(h11.Data(data=filler)))

        def _start_timer(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(head_seconds, self._close_if_idle, self.cycle)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _close_if_idle(self, last: object) -> None:
            """Close, unless a request followed the ``last`` one or that is still being answered."""
            is_idle = self.cycle is None or self.cycle.response_complete
            if self.cycle is last and is_idle and not self.transport.is_closing():
                self.transport.close()

    return Protocol
