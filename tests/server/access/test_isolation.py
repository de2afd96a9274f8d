"""Isolation is checked while the server runs; when it is violated, the server stops serving."""

import pytest
import torch
from starlette.testclient import TestClient

from refine_server.server.engine.backend.model_backend import ModelBackend
from refine_server.server.engine.backend.opening import open_backend
from refine_server.server.engine.backend.self_check import self_check
from refine_server.server.engine.engine import Engine
from refine_server.server.http.errors import ApiError
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import DocumentAdapted
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest
from support.engines import serving, until
from support.fake_backend import FakeBackend


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
    fake.is_intact = False
    assert not verify(client)
    wait_for(lambda: client.get("/health/ready").status_code == 503)
    assert refusal(client) == (503, "isolation_violated")
    assert client.app.state.engine.is_broken
    assert violations(client) == 1
    assert client.get("/health/live").is_success


def test_changed_weights_are_found_after_an_error(client, fake, wait_for) -> None:
    fake.is_intact = False
    reply = client.post("/v1/answers", json={"document": fake.fail("crash"), "query": "q"})
    assert reply.status_code == 500
    wait_for(lambda: refusal(client) == (503, "isolation_violated"))


def test_an_error_alone_ends_nothing(client, fake) -> None:
    assert (
        client.post("/v1/answers", json={"document": fake.fail("crash"), "query": "q"}).status_code
        == 500
    )
    assert client.post("/v1/answers", json={"document": "x", "query": "q"}).is_success
    assert violations(client) == 0


@pytest.mark.anyio
async def test_another_owners_document_is_never_used(fake: FakeBackend) -> None:
    async with serving(fake.open, model="fake") as served:
        *_, made = await served.submit(AdaptRequest("alpha x", owner="a")).finish()
        assert isinstance(made, DocumentAdapted)
        with pytest.raises(ApiError) as error:
            await served.submit(AskRequest(made.document, "q", owner="b")).finish()
        assert error.value.status_code == 500
        assert "alpha" not in str(error.value)
        await until(lambda: served.engine.is_broken)
        with pytest.raises(ApiError, match="isolation check"):
            served.engine.ready()


def test_the_real_model_passes_its_self_check_and_a_changed_one_does_not() -> None:
    backend = open_backend(Settings(model="tiny"))
    self_check(backend)
    assert backend.verify()
    assert len(backend.fingerprint) == 64
    assert isinstance(backend, ModelBackend)
    with torch.no_grad():
        next(backend.model.parameters()).view(-1)[0] += 1
    assert not backend.verify()
    with pytest.raises(RuntimeError, match="changed the base weights"):
        self_check(backend)
