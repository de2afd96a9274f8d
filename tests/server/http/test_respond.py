"""The responder: whole and streamed responses, early and late failures, disconnects."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
from sse_starlette import ServerSentEvent
from starlette.types import Message
from typing_extensions import override

from refine_server.clients import sse
from refine_server.server.engine.events import Accepted, Progress, RunEvent
from refine_server.server.http import respond
from refine_server.server.http.connections import ClientDisconnected
from refine_server.server.http.errors import ApiError
from refine_server.server.http.respond import ResponseEncoder, RunResponse
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import AnswerDelta

pytestmark = pytest.mark.anyio


class Letters(ResponseEncoder):
    """Encodes deltas as their text, and the whole response as the joined texts."""

    def __init__(self) -> None:
        self.text = ""

    @override
    def add(self, event: RunEvent) -> None:
        if isinstance(event, AnswerDelta):
            self.text += event.text

    @override
    def chunks(self, event: RunEvent) -> Iterator[ServerSentEvent]:
        if isinstance(event, AnswerDelta):
            yield ServerSentEvent(data=self.text)

    @override
    def last_chunks(self) -> Iterator[ServerSentEvent]:
        yield ServerSentEvent(data="end")

    @override
    async def response(self) -> str:
        return json.dumps(self.text)


class ScriptedRun:
    """Events of work that waited for a second and a half."""

    queue_seconds = 1.5

    def __init__(self, events: AsyncIterator[RunEvent]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[RunEvent]:
        return self._events


class Exchange:
    """Scripted work: a text is an event, a number is a pause in seconds, an exception is raised.

    Args:
        script: what happens when the work is admitted.
        before: what happens before.
        refusal: refuses the work after that.
    """

    def __init__(
        self,
        *script: str | float | Exception | Accepted | Progress,
        before: float | Exception = 0.0,
        refusal: Exception | None = None,
    ) -> None:
        self.script = script
        self.before, self.refusal = before, refusal
        self.ended = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple["ScriptedRun", ResponseEncoder]]:
        try:
            await self._play(self.before)
            await self._play(self.refusal or 0.0)
            yield ScriptedRun(self._events()), Letters()
        finally:
            self.ended = True

    async def _events(self) -> AsyncIterator[RunEvent]:
        for item in self.script:
            if isinstance(item, str):
                yield AnswerDelta(item)
            elif isinstance(item, Accepted | Progress):
                yield item
            else:
                await self._play(item)

    async def _play(self, item: float | Exception) -> None:
        if isinstance(item, Exception):
            raise item
        await anyio.sleep(item)


class Client:
    """Sends a request, collects the response, and may disconnect."""

    def __init__(self, *, leaves_after: float | None = None) -> None:
        self.leaves_after = leaves_after
        self.messages: list[Message] = []

    async def get(self, exchange: Exchange, *, stream: bool) -> None:
        response = RunResponse(exchange.open(), stream=stream, shutdown_seconds=0.1)
        await response({"type": "http", "method": "POST"}, self.receive, self.send)

    async def receive(self) -> Message:
        await (
            anyio.sleep_forever() if self.leaves_after is None else anyio.sleep(self.leaves_after)
        )
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(event.event, event.data) for event in sse.parse([self.body])]


async def test_the_whole_is_sent_when_the_work_has_ended() -> None:
    client, exchange = Client(), Exchange("a", "b")
    await client.get(exchange, stream=False)
    assert client.messages[0]["status"] == 200
    assert (b"content-type", b"application/json") in client.messages[0]["headers"]
    assert json.loads(client.body) == "ab"
    assert exchange.ended


async def test_a_stream_sends_each_event_and_then_its_end() -> None:
    client, exchange = Client(), Exchange("a", "b")
    await client.get(exchange, stream=True)
    assert client.messages[0]["status"] == 200
    assert client.events == [("message", "a"), ("message", "ab"), ("message", "end")]
    assert exchange.ended


async def test_what_has_no_chunk_of_how_far_the_work_is_is_a_comment() -> None:
    client = Client()
    told = (
        Accepted(queue_position=2, estimate=None, seconds_left=4.2),
        Progress(phase="reading", seconds=2.0, seconds_left=None),
    )
    await client.get(Exchange(*told, "a"), stream=True)
    comments = [line for line in client.body.decode().split("\n") if line.startswith(":")]
    assert comments == [": queue position 2, about 4 s left", ": reading"]
    assert client.events == [("message", "a"), ("message", "end")]


async def test_a_stream_begins_while_the_work_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "SILENT_SECONDS", 0.01)
    client, exchange = Client(), Exchange("a", before=0.1)
    await client.get(exchange, stream=True)
    assert client.body.startswith(b": preparing\n\n: preparing\n\n")
    assert client.events == [("message", "a"), ("message", "end")]
    assert exchange.ended


async def test_an_error_of_work_that_was_prepared_for_long_is_the_only_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(respond, "SILENT_SECONDS", 0.01)
    client, exchange = Client(), Exchange(before=0.1, refusal=ApiError(409, "lost", "lost"))
    await client.get(exchange, stream=True)
    [(name, data)] = client.events
    assert (name, json.loads(data)["error"]["code"]) == ("error", "lost")
    assert exchange.ended


async def test_a_client_may_leave_a_stream_whose_work_is_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(respond, "SILENT_SECONDS", 0.01)
    client, exchange = Client(leaves_after=0.1), Exchange("a", before=60.0)
    with anyio.fail_after(5):
        await client.get(exchange, stream=True)
    assert client.events == []
    assert exchange.ended


REFUSALS = [
    RequestError("document: it is unfit", "document", "unfit"),
    ApiError(503, "not now", "busy"),
    KeyError("unexpected"),
]


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_byte_is_left_to_the_error_handlers(
    error: Exception, stream: bool
) -> None:
    client, exchange = Client(), Exchange("a", before=error)
    with pytest.raises(type(error)):
        await client.get(exchange, stream=stream)
    assert client.messages == []
    assert exchange.ended


@pytest.mark.parametrize(
    ("error", "code"), [*zip(REFUSALS, ["unfit", "busy", "internal_error"], strict=True)]
)
async def test_an_error_after_the_first_byte_is_the_last_event(error: Exception, code: str) -> None:
    client, exchange = Client(), Exchange("a", error, "b")
    await client.get(exchange, stream=True)
    (_, first), (name, data) = client.events
    assert (first, name, json.loads(data)["error"]["code"]) == ("a", "error", code)
    assert "unexpected" not in data
    assert exchange.ended


async def test_an_unexpected_error_in_a_stream_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await Client().get(Exchange(KeyError("unexpected")), stream=True)
    assert "KeyError: 'unexpected'" in caplog.text
    caplog.clear()
    await Client().get(Exchange(ApiError(503, "not now", "busy")), stream=True)
    assert caplog.text == ""


async def test_a_late_error_of_the_whole_is_left_to_the_error_handlers() -> None:
    client = Client()
    with pytest.raises(ApiError):
        await client.get(Exchange("a", ApiError(504, "late", "timeout")), stream=False)
    assert client.messages == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_work_is_admitted_cancels_it(stream: bool) -> None:
    client, exchange = Client(leaves_after=0.02), Exchange("a", before=60.0)
    with anyio.fail_after(5), pytest.raises(ClientDisconnected) as left:
        await client.get(exchange, stream=stream)
    assert left.value.status_code == 499
    assert client.messages == []
    assert exchange.ended


async def test_a_client_that_leaves_while_it_waits_for_the_whole_cancels_the_work() -> None:
    client, exchange = Client(leaves_after=0.02), Exchange("a", 60.0)
    with anyio.fail_after(5), pytest.raises(ClientDisconnected):
        await client.get(exchange, stream=False)
    assert client.messages == []
    assert exchange.ended


async def test_a_client_that_leaves_a_stream_cancels_the_work() -> None:
    client, exchange = Client(leaves_after=0.05), Exchange("a", 60.0)
    with anyio.fail_after(5):
        await client.get(exchange, stream=True)
    assert client.events == [("message", "a")]
    assert exchange.ended


async def test_the_work_has_ended_before_its_whole_response_is_sent() -> None:
    """A client that reads slowly keeps no adaptation in memory."""
    exchange, ended_at_send = Exchange("a"), []

    class Watching(Client):
        @override
        async def send(self, message: Message) -> None:
            ended_at_send.append(exchange.ended)

    await Watching().get(exchange, stream=False)
    assert all(ended_at_send)
    assert ended_at_send
