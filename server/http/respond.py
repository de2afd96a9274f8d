"""The responder of every route that runs the model: a run's events as JSON or as a stream."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from refine_server.server.http.connections import (
    FILLER,
    ClientDisconnected,
    cancel_on_disconnect,
)
from refine_server.server.http.errors import ApiError, as_api_error
from refine_server.server.http.request_log import RequestLog, RunningWork
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import Event

logger = logging.getLogger(__name__)

LINE_END = "\n"
COMMENT = b":\n\n"
"""An empty comment, which clients skip."""


class StreamEvent(ServerSentEvent):
    """An event of a stream. Its lines end in LF, because some clients split streams at that."""

    DEFAULT_SEPARATOR = LINE_END


class ResponseEncoder(Protocol):
    """Encodes the events of one run in the form of one API."""

    def add(self, event: Event) -> None:
        """Take the next event."""

    def chunks(self, event: Event) -> Iterable[StreamEvent]:
        """Encode an event, which was added before, for a stream."""

    def last_chunks(self) -> Iterable[StreamEvent]:
        """Encode what a stream ends with after the last event."""

    def error_chunks(self, error: ApiError) -> Iterable[StreamEvent]:
        """Encode what a stream ends with if something fails."""
        return (StreamEvent(event="error", data=error.json),)

    async def response(self) -> str:
        """Encode the whole as JSON after the last event."""


Exchange = tuple[RunningWork, ResponseEncoder]
"""The events of work that was submitted, and what encodes them."""


class RunResponse(Response):
    """Runs work and responds with its events; cancels the work if the client leaves before.

    Errors have their own status until the stream begins, and are an ``error`` event afterwards.

    Args:
        exchange: submits the work, and gives its events and their encoder. The client may leave
            while it is entered, too.
        stream: whether to respond with server-sent events, which begin once the work is admitted.
        shutdown_seconds: how long the engine lets running work go on at shutdown.
    """

    def __init__(
        self,
        exchange: AbstractAsyncContextManager[Exchange],
        *,
        stream: bool,
        shutdown_seconds: float,
    ) -> None:
        super().__init__()
        self._exchange = exchange
        self._stream = stream
        self._shutdown_seconds = shutdown_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun, log = False, RequestLog.of(scope)
        try:
            async with cancel_on_disconnect(receive), self._exchange as (run, encoder):
                events = log.recorded(run)
                if self._stream:
                    has_begun = True
                    stream = event_stream(_chunks(events, encoder), self._shutdown_seconds)
                    await stream(scope, _receive_nothing, send)
                    return
                async for event in events:
                    encoder.add(event)
                content = await encoder.response()
        except ClientDisconnected:
            if has_begun:
                return
            raise
        await Response(content, media_type="application/json")(scope, receive, send)


class _EventStream(EventSourceResponse):
    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[FILLER] = COMMENT
        await super().__call__(scope, receive, send)


def event_stream(
    chunks: AsyncIterable[StreamEvent], shutdown_seconds: float
) -> EventSourceResponse:
    """Respond with server-sent events, of which an ``error`` is the last if something fails.

    Args:
        chunks: the events.
        shutdown_seconds: how long the engine lets running work go on at shutdown.
    """
    # At shutdown the engine ends the work itself, so the stream can still report how it ended.
    return _EventStream(
        _until_error(chunks),
        sep=LINE_END,
        shutdown_event=anyio.Event(),
        shutdown_grace_period=shutdown_seconds + 1.0,
    )


async def _chunks(
    events: AsyncIterable[Event], encoder: ResponseEncoder
) -> AsyncIterator[StreamEvent]:
    try:
        async for event in events:
            encoder.add(event)
            for chunk in encoder.chunks(event):
                yield chunk
        for chunk in encoder.last_chunks():
            yield chunk
    except Exception as error:
        for chunk in encoder.error_chunks(_reported(error)):
            yield chunk


async def _until_error(chunks: AsyncIterable[StreamEvent]) -> AsyncIterator[StreamEvent]:
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        yield StreamEvent(event="error", data=_reported(error).json)


def _reported(error: Exception) -> ApiError:
    """Return the error that a client receives in a stream; log it if it is unexpected."""
    if not isinstance(error, ApiError | RequestError):
        logger.error("a stream failed", exc_info=error)
    return as_api_error(error)


async def _receive_nothing() -> Message:
    """Leave it to ``cancel_on_disconnect`` to learn that the client has left."""
    nothing: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await nothing


def event_stream_docs(events: Sequence[str], *, data_is_json: bool = True) -> dict[str, Any]:
    """Describe, in OpenAPI, the media types of a stream of server-sent events with these names.

    Without ``data_is_json``, data may be a word such as OpenAI's ``[DONE]``, and the event's name
    may be missing.
    """
    data = {"type": "string", "contentMediaType": "application/json"}
    # As FastAPI itself describes one event of a stream (OpenAPI 3.2).
    item = {
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": list(events)},
            "data": data if data_is_json else {"type": "string"},
        },
        "required": ["event", "data"] if data_is_json else ["data"],
    }
    return {"text/event-stream": {"itemSchema": item}}
