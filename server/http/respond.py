"""The responder of every route that runs the model: a run's events as JSON or as a stream."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from refine_server.server.engine.events import Accepted, Progress, QueueMoved, RunEvent
from refine_server.server.engine.run import SILENT_SECONDS
from refine_server.server.http.connections import (
    FILLER,
    ClientDisconnected,
    cancel_on_disconnect,
)
from refine_server.server.http.errors import ApiError, as_api_error
from refine_server.server.http.request_log import RequestLog, RunningWork
from refine_server.ttt.interface.errors import RequestError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LINE_END = "\n"
COMMENT = b":\n\n"
"""An empty comment, which clients skip."""


class StreamEvent(ServerSentEvent):
    """An event of a stream. Its lines end in LF, because some clients split streams at that."""

    DEFAULT_SEPARATOR = LINE_END


class ResponseEncoder(Protocol):
    """Encodes the events of one run in the form of one API."""

    def add(self, event: RunEvent) -> None:
        """Take the next event."""

    def chunks(self, event: RunEvent) -> Iterable[StreamEvent]:
        """Encode an event, which was added before, for a stream.

        What the engine tells of a run's way (``Accepted``, ``QueueMoved``, ``Progress``) and has no
        chunk is sent as a comment, which every client skips.
        """

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
        stream: whether to respond with server-sent events. They begin once the work is admitted, or
            after two seconds, so that no proxy takes a long wait for a server that is gone.
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
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        log = RequestLog.of(scope)
        try:
            async with cancel_on_disconnect(receive):
                if self._stream:
                    await self._send_stream(scope, send, log)
                    return
                async with self._exchange as (run, encoder):
                    content = await _collected(log.recorded(run), encoder)
        except ClientDisconnected:
            if self._has_begun:
                return
            raise
        await Response(content, media_type="application/json")(scope, receive, send)

    async def _send_stream(self, scope: Scope, send: Send, log: RequestLog) -> None:
        async with _entering(self._exchange) as entering:
            await asyncio.wait({entering}, timeout=SILENT_SECONDS)
            if entering.done():
                entering.result()  # raises what refused the work
            self._has_begun = True
            stream = event_stream(_chunks(entering, log), self._shutdown_seconds)
            await stream(scope, _receive_nothing, send)


@asynccontextmanager
async def _entering(context: AbstractAsyncContextManager[T]) -> "AsyncIterator[asyncio.Task[T]]":
    """Enter a context in a task of its own, and leave it, or stop entering it, at the end."""
    async with AsyncExitStack() as stack:
        task = asyncio.create_task(stack.enter_async_context(context))
        try:
            yield task
        finally:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task})


async def collect(exchange: AbstractAsyncContextManager[Exchange]) -> str:
    """Submit work and return its whole response as JSON, for a caller without a connection.

    Raises:
        RequestError: the work cannot be done as asked for.
        ApiError: it was refused, or failed.
    """
    async with exchange as (events, encoder):
        return await _collected(events, encoder)


async def _collected(events: AsyncIterable[RunEvent], encoder: ResponseEncoder) -> str:
    async for event in events:
        encoder.add(event)
    return await encoder.response()


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
    entering: "asyncio.Task[Exchange]", log: RequestLog
) -> AsyncIterator[StreamEvent]:
    while not entering.done():
        yield StreamEvent(comment="preparing")
        await asyncio.wait({entering}, timeout=SILENT_SECONDS)
    run, encoder = entering.result()
    try:
        async for event in log.recorded(run):
            encoder.add(event)
            is_empty = True
            for chunk in encoder.chunks(event):
                is_empty = False
                yield chunk
            if is_empty and (comment := _comment(event)) is not None:
                yield StreamEvent(comment=comment)
        for chunk in encoder.last_chunks():
            yield chunk
    except Exception as error:
        for chunk in encoder.error_chunks(_reported(error)):
            yield chunk


def _comment(event: RunEvent) -> str | None:
    """Describe what a run waits for, for people who look at a stream."""
    match event:
        case Accepted() | QueueMoved():
            said = f"queue position {event.queue_position}"
        case Progress():
            said = event.phase
        case _:
            return None
    left = event.seconds_left
    return said if left is None else f"{said}, about {left:.0f} s left"


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


def event_stream_docs(events: Mapping[str, type[BaseModel] | None]) -> dict[str, Any]:
    """Describe, in OpenAPI, a stream of server-sent events by their names and the JSON of their
    data, where a model describes it."""
    items = []
    for name, data in events.items():
        schema = {} if data is None else {"contentSchema": {"$ref": SCHEMAS + data.__name__}}
        items.append(_event_docs(name, {**JSON_TEXT, **schema}))
    return {"text/event-stream": {"itemSchema": {"oneOf": items}}}


def chunk_stream_docs() -> dict[str, Any]:
    """Describe, in OpenAPI, a stream as OpenAI's, whose data may be the word ``[DONE]``."""
    chunk = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    items = [chunk, _event_docs("error", JSON_TEXT)]
    return {"text/event-stream": {"itemSchema": {"anyOf": items}}}


SCHEMAS = "#/components/schemas/"
JSON_TEXT: dict[str, Any] = {"type": "string", "contentMediaType": "application/json"}


def _event_docs(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Describe one event as FastAPI itself does (OpenAPI 3.2)."""
    properties = {"event": {"type": "string", "const": name}, "data": data}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}
