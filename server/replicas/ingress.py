"""The ingress: an ASGI application that sends each request to the replica of its session.

It loads no model. It reads the body, computes the session where the client has not, and passes on
what the replica sends.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from refine_server.server.http.errors import ApiError
from refine_server.server.replicas.session import HEADER, session_of

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a request is sent to a replica at most: one that is full or gone is left out."""
REPEATABLE = ("GET", "HEAD")
FULL_RETRY_SECONDS = 5
"""``Retry-After`` where every replica has as many requests as it may."""
LOST_RETRY_SECONDS = 1
"""``Retry-After`` of a request whose replica died: the others serve at once."""


class ReplicaLostError(Exception):
    """The replica died before the response was complete."""


class ReplicasFullError(Exception):
    """Every replica has as many requests as it may."""


class Forward(Protocol):
    """Sends a request to a replica."""

    def __call__(
        self, session: str | None, scope: dict[str, Any], body: bytes
    ) -> AsyncIterator[list[Message]]:
        """Yield the messages of the response, as many at once as are there.

        Closing the iterator early cancels the request.

        Args:
            session: requests of one session go to one replica; None for any.
            scope: the ASGI scope, without what only this process has.
            body: the whole body.

        Raises:
            ReplicaLostError: the replica died.
            ReplicasFullError: no replica takes the request.
        """


class Ingress:
    """Sends requests to replicas.

    A request that a replica refuses because its queue is full is sent to another one, as is a
    reading request whose replica died. Any other request whose replica died gets 503 with
    ``Retry-After``, or, in a stream that had begun, the event ``error``: work is never done twice
    without the client's knowledge.

    Args:
        forward: sends a request to a replica.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            body = await _read(receive)
        except asyncio.CancelledError:
            return  # the client left
        headers = MutableHeaders(raw=list(scope["headers"]))
        session = session_of(headers, scope["path"], body)
        if session is not None:
            headers[HEADER] = session
        portable = {name: scope.get(name) for name in PORTABLE} | {"headers": headers.raw}
        response = asyncio.create_task(self._respond(session, portable, body, send))
        leaving = asyncio.create_task(_wait_until_left(receive))
        try:
            await asyncio.wait((response, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not response.done():
                response.cancel()
            await asyncio.wait((response,))
        if not response.cancelled():
            response.result()

    async def _respond(
        self, session: str | None, scope: dict[str, Any], body: bytes, send: Send
    ) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            is_last = attempt == ATTEMPTS
            # Another session is most likely that of another replica.
            place = session if attempt == 1 or session is None else f"{session}/{attempt}"
            exchange = _Exchange(send, Headers(raw=scope["headers"]), passes_on_refusals=is_last)
            try:
                async for messages in self._forward(place, scope, body):
                    await exchange.send(messages)
                    if exchange.was_refused:
                        break
                if not exchange.was_refused:
                    return
            except ReplicasFullError:
                await exchange.fail(replicas_full())
                return
            except ReplicaLostError:
                may_repeat = scope["method"] in REPEATABLE and not exchange.has_begun
                if not may_repeat or is_last:
                    logger.error("the replica of %s %s died", scope["method"], scope["path"])
                    await exchange.fail(replica_lost())
                    return


class _Exchange:
    """Passes on the messages of one response."""

    def __init__(self, send: Send, requested: Headers, *, passes_on_refusals: bool) -> None:
        self._send = send
        self._request_id = requested.get("x-request-id")
        self._passes_on_refusals = passes_on_refusals
        self._refusal: Message | None = None
        """The beginning of a response with status 429, until it is known what it says."""
        self.has_begun = False
        self.was_refused = False
        """Whether the replica's queue is full, which that of another one may not be."""
        self._is_event_stream = False

    async def send(self, messages: list[Message]) -> None:
        for message in messages:
            if message["type"] == "http.response.start":
                if message["status"] == 429 and not self._passes_on_refusals:
                    self._refusal = message
                    continue
                headers = MutableHeaders(raw=list(message["headers"]))
                content_type = headers.get("content-type", "")
                self._is_event_stream = content_type.startswith("text/event-stream")
                if headers.get("x-request-id") == self._request_id:
                    del headers["x-request-id"]  # Serve's proxy adds it again
                message = {**message, "headers": headers.raw}
            elif self._refusal is not None:
                if b'"queue_full"' in message.get("body", b""):
                    self.was_refused = True
                    return
                await self._send(self._refusal)
                self._refusal = None
            self.has_begun = True
            await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """End the response with an error.

        Raises:
            ConnectionError: it had begun and is no stream of events, so that the connection is cut.
        """
        if not self.has_begun:
            response = error.response()
            start = {"type": "http.response.start", "status": response.status_code}
            await self._send({**start, "headers": response.raw_headers})
            await self._send({"type": "http.response.body", "body": response.body})
        elif self._is_event_stream:
            event = f"event: error\r\ndata: {error.json}\r\n\r\n".encode()
            await self._send({"type": "http.response.body", "body": event})
        else:
            raise ConnectionError(str(error))


PORTABLE = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "client", "server"),
)
"""What a replica needs to know of a request's scope, beside its headers."""


def replica_lost() -> ApiError:
    """503: the replica that worked on the request died."""
    message = (
        "The replica that worked on this request stopped. Adaptations that were ready are kept; "
        f"send the request again in {LOST_RETRY_SECONDS} s."
    )
    return ApiError(503, message, "replica_lost", retry_after=LOST_RETRY_SECONDS)


def replicas_full() -> ApiError:
    """429: every replica has as many requests as it may."""
    message = f"Every replica is busy. Try again in {FULL_RETRY_SECONDS} s."
    return ApiError(429, message, "queue_full", retry_after=FULL_RETRY_SECONDS)


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
