"""One budget for the process's memory: shares, refusals, waiting, eviction and metrics."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.http.errors import ApiError
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.memory.device import HostMemory
from refine_server.server.settings import Settings
from support.fake_backend import FakeBackend

MakeClient = Callable[..., TestClient]
WaitFor = Callable[..., None]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> MemoryBudget:
    """Return a budget of 1,000 bytes, of which the model takes 200."""
    monkeypatch.setattr(HostMemory, "taken_bytes", lambda self: 200)
    opened = MemoryBudget()
    opened.open(1000, HostMemory())
    return opened


def kinds(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = (line.split() for line in lines if line.startswith("refine_memory_bytes{"))
    return {name.split('"')[1]: float(value) for name, value in found}


def answer(client: TestClient, document: str, **fields: Any) -> Any:
    return client.post("/v1/answers", json={"document": document, "query": "q", **fields})


def test_what_the_model_leaves_is_shared_out(opened: MemoryBudget) -> None:
    assert (opened.adaptation_bytes, opened.request_bytes) == (200, 600)
    assert opened.activation_bytes == 300
    assert opened.document_bytes == 800


def test_documents_get_what_adaptations_and_requests_leave(opened: MemoryBudget) -> None:
    used = {"adaptations": 150, "requests": 500}
    for kind in used:
        opened.account(kind, lambda kind=kind: used[kind])
    assert opened.document_bytes == 150
    used["requests"] = 600
    used["adaptations"] = 200
    assert opened.document_bytes == 0


def test_every_byte_has_a_kind(opened: MemoryBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.account("documents", lambda: 100)
    monkeypatch.setattr(HostMemory, "taken_bytes", lambda self: 450)
    assert opened.by_kind() == {"model": 200, "documents": 100, "allocator": 150}


def test_a_model_that_takes_all_is_refused_by_the_options_name(opened: MemoryBudget) -> None:
    with pytest.raises(ValueError, match="--memory-bytes"):
        opened.open(200, HostMemory())


def test_what_can_never_fit_is_refused_with_413(opened: MemoryBudget) -> None:
    opened.require(600, 10)
    with pytest.raises(ApiError, match="--memory-bytes") as refused:
        opened.require(601, 10)
    assert refused.value.status_code == 413


@pytest.mark.parametrize(("free", "total"), [(8000, 900 * 9), (None, None)])
def test_the_default_is_what_is_free_less_a_reserve(
    monkeypatch: pytest.MonkeyPatch, free: int | None, total: int | None
) -> None:
    from refine_server.ttt.models.loading import host_memory

    monkeypatch.setattr(host_memory, "available_memory", lambda: free)
    monkeypatch.setattr(HostMemory, "taken_bytes", lambda self: 1000)
    found = HostMemory().default_budget()
    assert found == total if total else found > 2**28


@pytest.mark.usefixtures("all_spare")
def test_a_request_that_cannot_fit_is_refused_before_it_waits(
    make_client: MakeClient, fake: FakeBackend
) -> None:
    fake.bytes_per_token = 100
    client = make_client(memory_bytes=4000)  # 3,000 for requests
    assert answer(client, "short").is_success
    refused = answer(client, "long " * 20)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        413,
        "memory_exceeded",
        "document",
    )
    assert "--memory-bytes" in error["message"]
    made = client.post("/v1/adaptations", json={"document": "long " * 20})
    assert (made.status_code, made.json()["error"]["code"]) == (413, "memory_exceeded")


@pytest.mark.usefixtures("all_spare")
def test_a_request_waits_until_there_is_memory_for_it(
    make_client: MakeClient, fake: FakeBackend, wait_for: WaitFor
) -> None:
    fake.bytes_per_token = 1000
    client = make_client(memory_bytes=40_000, max_active=4)
    made = [
        client.post("/v1/adaptations", json={"document": fake.hold(f"{name} {'x' * 15}")}).json()
        for name in ("one", "two")
    ]  # 19,000 bytes each, together more than 30,000
    wait_for(lambda: kinds(client)["requests"] > 0)
    time.sleep(0.1)
    assert kinds(client)["requests"] < 30_000
    status = [client.get(f"/v1/adaptations/{m['id']}").json()["status"] for m in made]
    assert status[1] == "queued"
    fake.gate.set()
    for adaptation in made:
        url = f"/v1/adaptations/{adaptation['id']}"
        wait_for(lambda url=url: client.get(url).json()["status"] == "ready")
    assert kinds(client)["requests"] == 0


def test_the_metrics_tell_the_budget_and_what_it_is_spent_on(make_client: MakeClient) -> None:
    client = make_client(memory_bytes=2**40)
    [budgeted] = [
        float(line.split()[-1])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("refine_memory_budget_bytes ")
    ]
    assert budgeted == 2**40
    found = kinds(client)
    assert set(found) == {"model", "requests", "adaptations", "documents", "allocator"}
    assert found["model"] > 2**20


def test_a_server_does_not_start_without_memory_for_its_model(
    make_app: Callable[..., Any],
) -> None:
    app = make_app(memory_bytes=1000)
    with TestClient(app):
        error = app.state.engine.opened.exception(10)
    assert "--memory-bytes" in str(error)


def test_memory_bytes_is_validated() -> None:
    with pytest.raises(ValueError, match="memory_bytes"):
        Settings(memory_bytes=0)
    assert json.loads(Settings(memory_bytes=5).model_dump_json())["memory_bytes"] == 5


@pytest.mark.usefixtures("all_spare")
def test_an_adaptation_that_can_never_be_kept_fails_by_the_options_name(
    make_client: MakeClient, wait_for: WaitFor
) -> None:
    client = make_client(memory_bytes=4 * 3000)  # one takes more than 4,000
    url = f"/v1/adaptations/{client.post('/v1/adaptations', json={'document': 'x y'}).json()['id']}"
    wait_for(lambda: client.get(url).json()["status"] == "failed")
    error = client.get(url).json()["error"]
    assert error["code"] == "memory_exceeded"
    assert "--memory-bytes" in error["message"]
