"""The ingress passes requests on, and says what happened to those whose replica is full or gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message

from refine_server.server.replicas.ingress import (
    ATTEMPTS,
    Ingress,
    ReplicaLostError,
    ReplicasFullError,
)

Script = Callable[[], AsyncIterator[list[Message]]]
START = {"type": "http.response.start", "status": 200, "headers": []}


def part(body: bytes, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


async def answer() -> AsyncIterator[list[Message]]:
    yield [START, part(b"answer")]


async def refuse() -> AsyncIterator[list[Message]]:
    body = b'{"error": {"code": "queue_full"}}'
    yield [{**START, "status": 429, "headers": [(b"retry-after", b"7")]}, part(body)]


async def refuse_for_a_quota() -> AsyncIterator[list[Message]]:
    yield [{**START, "status": 429}]
    yield [part(b'{"error": {"code": "quota_requests"}}')]


async def die() -> AsyncIterator[list[Message]]:
    raise ReplicaLostError
    yield []


async def be_full() -> AsyncIterator[list[Message]]:
    raise ReplicasFullError
    yield []


async def die_in_a_stream() -> AsyncIterator[list[Message]]:
    yield [{**START, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}]
    yield [part(b"event: answer.delta\r\ndata: {}\r\n\r\n", True)]
    raise ReplicaLostError


async def die_in_a_body() -> AsyncIterator[list[Message]]:
    yield [START, part(b"half", True)]
    raise ReplicaLostError


class Replicas:
    """Replicas that answer by a script, a line for each request that reaches one."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.sessions: list[str | None] = []
        self.scopes: list[dict[str, Any]] = []

    def forward(
        self, session: str | None, scope: dict[str, Any], body: bytes
    ) -> AsyncIterator[list[Message]]:
        self.sessions.append(session)
        self.scopes.append(scope)
        return self.scripts.pop(0)()

    def send(self, method: str = "POST", **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(Ingress(self.forward))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, "/v1/answers", **options)

        return asyncio.run(send())


def test_a_request_is_passed_on_with_its_session() -> None:
    replicas = Replicas(answer)
    response = replicas.send(json={"document": "d", "query": "q"})
    assert (response.status_code, response.text) == (200, "answer")
    (session,), (scope,) = replicas.sessions, replicas.scopes
    assert session is not None
    assert (b"x-session-id", session.encode()) in scope["headers"]
    assert scope["path"] == "/v1/answers"


def test_a_full_replica_s_request_goes_to_another() -> None:
    replicas = Replicas(refuse, answer)
    assert replicas.send(json={"document": "d"}).text == "answer"
    first, second = replicas.sessions
    assert first != second


def test_when_all_are_full_the_last_refusal_is_the_answer() -> None:
    replicas = Replicas(*[refuse] * ATTEMPTS)
    response = replicas.send(json={"document": "d"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert replicas.scripts == []


def test_a_quota_s_refusal_is_not_tried_elsewhere() -> None:
    replicas = Replicas(refuse_for_a_quota)
    response = replicas.send(json={"document": "d"})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "quota_requests"


def test_no_place_anywhere_is_429_with_the_time_to_come_back() -> None:
    response = Replicas(be_full).send(json={"document": "d"})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) > 0


def test_work_whose_replica_died_gets_an_error_and_is_not_repeated() -> None:
    replicas = Replicas(die, answer)
    response = replicas.send(json={"document": "d"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "replica_lost"
    assert "retry-after" in response.headers
    assert len(replicas.scripts) == 1


def test_a_reading_request_whose_replica_died_is_repeated() -> None:
    assert Replicas(die, answer).send("GET").text == "answer"


def test_a_stream_whose_replica_died_ends_with_the_event_error() -> None:
    response = Replicas(die_in_a_stream).send(json={"document": "d"})
    name, data = response.text.split("\r\n\r\n")[1].split("\r\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "replica_lost"


def test_a_body_whose_replica_died_is_cut() -> None:
    with pytest.raises(ConnectionError):
        Replicas(die_in_a_body).send(json={"document": "d"})


def test_the_work_ends_when_the_client_leaves() -> None:
    async def leave() -> None:
        working, ended = asyncio.Event(), asyncio.Event()

        async def work() -> AsyncIterator[list[Message]]:
            working.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            yield []

        requested: list[Message] = [{"type": "http.request", "body": b"{}"}]

        async def receive() -> Message:
            if requested:
                return requested.pop()
            await working.wait()
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None:
            raise AssertionError("nothing is sent to who has left")

        scope = {"type": "http", "method": "POST", "path": "/v1/answers", "headers": []}
        await Ingress(Replicas(work).forward)(scope, receive, send)
        assert ended.is_set()

    asyncio.run(leave())
