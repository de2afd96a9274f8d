"""A replica serves requests that come as messages, as the same application does over HTTP."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from refine_server.server.replicas.replica import Replica
from refine_server.server.settings import Settings

DOCUMENT = "The castle animal is falcon. The harbour code is amber."


def scope(path: str, method: str = "POST") -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"x-session-id", b"0123abcd")]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


def with_replica(store: Path, use: Callable[[Replica], Awaitable[None]]) -> None:
    settings = Settings(model="tiny", store=store.as_uri(), log_level="error")

    async def run() -> None:
        replica = Replica(settings.model_dump(mode="json"))
        await replica.reconfigure({})
        try:
            await use(replica)
        finally:
            await replica.close()

    asyncio.run(run())


async def whole(parts: AsyncIterator[list[Message]]) -> tuple[Message, bytes]:
    messages = [message async for part in parts for message in part]
    return messages[0], b"".join(message.get("body", b"") for message in messages[1:])


def test_it_answers_keeps_and_reports(tmp_path: Path) -> None:
    async def use(replica: Replica) -> None:
        body = json.dumps({"document": DOCUMENT, "adapt": {"optimizer": {"steps": 1}}}).encode()
        start, made = await whole(replica.respond(scope("/v1/adaptations"), body))
        assert start["status"] == 202
        assert any(name == b"x-replica" for name, _ in start["headers"])
        adaptation = json.loads(made)["id"]
        assert adaptation.startswith("adapt-0123abcd")
        _, events = await whole(
            replica.respond(scope(f"/v1/adaptations/{adaptation}/events", "GET"), b"")
        )
        assert b"event: adaptation.ready" in events
        assert replica.record_autoscaling_stats() == {"queued_seconds": 0.0, "is_busy": 0.0}
        replica.check_health()

    with_replica(tmp_path, use)


def test_a_response_that_is_left_ends_its_work(tmp_path: Path) -> None:
    async def use(replica: Replica) -> None:
        adapt = {"optimizer": {"steps": 32}}
        body = {"document": DOCUMENT * 20, "query": "q", "adapt": adapt, "stream": True}
        parts = replica.respond(scope("/v1/answers"), json.dumps(body).encode())
        assert isinstance(parts, AsyncGenerator)
        while not any(b"adaptation.started" in m.get("body", b"") for m in await anext(parts)):
            pass
        assert replica.record_autoscaling_stats()["is_busy"] == 1.0
        await parts.aclose()
        async with asyncio.timeout(20):
            while replica.record_autoscaling_stats()["is_busy"]:
                await asyncio.sleep(0.01)

    with_replica(tmp_path, use)


def test_an_adaptation_that_is_ready_survives_its_replica(tmp_path: Path) -> None:
    made: list[str] = []

    async def make(replica: Replica) -> None:
        body = json.dumps({"document": DOCUMENT, "adapt": {"optimizer": {"steps": 1}}}).encode()
        _, resource = await whole(replica.respond(scope("/v1/adaptations"), body))
        made.append(json.loads(resource)["id"])
        events = replica.respond(scope(f"/v1/adaptations/{made[0]}/events", "GET"), b"")
        assert b"event: adaptation.ready" in (await whole(events))[1]

    async def ask(replica: Replica) -> None:
        body = json.dumps({"adaptation": made[0], "query": "q"}).encode()
        start, _ = await whole(replica.respond(scope("/v1/answers"), body))
        assert start["status"] == 200

    with_replica(tmp_path, make)
    with_replica(tmp_path, ask)


@pytest.mark.parametrize("path", ["/nowhere", "/v1/answers"])
def test_errors_are_responses(tmp_path: Path, path: str) -> None:
    async def use(replica: Replica) -> None:
        start, body = await whole(replica.respond(scope(path), b"{}"))
        assert start["status"] in (404, 422)
        assert json.loads(body)["error"]["message"]

    with_replica(tmp_path, use)
