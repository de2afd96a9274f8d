"""Isolation is checked while the server runs, and when it is broken nothing is served any more."""

import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.engine.backend import open_backend, self_check
from refine_server.server.engine.engine import Engine
from refine_server.server.engine.job import Job
from refine_server.server.http.errors import ApiError
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import DocumentAdapted, Event
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest


def violations(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    (line,) = [x for x in lines if x.startswith("refine_isolation_violations_total ")]
    return float(line.split()[-1])


def verify(client: TestClient) -> bool:
    engine: Engine = client.app.state.engine  # type: ignore[attr-defined]
    assert client.portal is not None
    return client.portal.call(engine.verify)


def refusal(client: TestClient) -> tuple[int, str]:
    reply = client.post("/v1/answers", json={"document": "x", "query": "q"})
    return reply.status_code, reply.json()["error"]["code"]


def test_intact_weights_are_verified_on_demand(client: TestClient) -> None:
    assert verify(client)
    assert client.post("/v1/answers", json={"document": "x", "query": "q"}).is_success
    assert violations(client) == 0


def test_changed_weights_are_found_on_demand_and_end_all_service(client, fake, wait_for) -> None:
    fake.measured = "changed"
    assert not verify(client)
    wait_for(lambda: client.get("/health/ready").status_code == 503)
    assert refusal(client) == (503, "isolation_violated")
    assert client.app.state.engine.is_broken
    assert violations(client) == 1
    assert client.get("/health/live").is_success


def test_changed_weights_are_found_after_an_error(client, fake, wait_for) -> None:
    fake.measured = "changed"
    reply = client.post("/v1/answers", json={"document": "crash", "query": "q"})
    assert reply.status_code == 500
    wait_for(lambda: refusal(client) == (503, "isolation_violated"))


def test_an_error_alone_ends_nothing(client) -> None:
    assert client.post("/v1/answers", json={"document": "crash", "query": "q"}).status_code == 500
    assert client.post("/v1/answers", json={"document": "x", "query": "q"}).is_success
    assert violations(client) == 0


def test_another_owners_document_is_never_used(fake: Any) -> None:
    async def finish(engine: Engine, job: Job) -> list[Event]:
        await engine.submit(job)
        return [event async for event in engine.events(job)]

    async def scenario() -> None:
        settings = Settings(model="fake")
        engine = Engine(lambda: fake.open(settings), settings, Metrics())
        engine.start()
        await asyncio.wrap_future(engine.opened)
        made = (await finish(engine, Job(AdaptRequest("alpha x", owner="a"), "r1", 60.0)))[-1]
        assert isinstance(made, DocumentAdapted)
        with pytest.raises(ApiError) as told:
            await finish(engine, Job(AskRequest(made.document, "q", owner="b"), "r2", 60.0))
        assert told.value.status == 500
        assert "alpha" not in str(told.value)
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError, match="Isolation"):
            engine.ready()
        await asyncio.to_thread(engine.stop)

    asyncio.run(scenario())


def test_the_real_model_passes_its_self_check_and_a_changed_one_does_not() -> None:
    backend = open_backend(Settings(model="tiny"))
    self_check(backend)
    assert backend.measure() == backend.fingerprint
    assert len(backend.fingerprint) == 64
    changed = type(backend)(**{**backend.__dict__, "fingerprint": "0" * 64})
    with pytest.raises(RuntimeError, match="changed the base weights"):
        self_check(changed)
