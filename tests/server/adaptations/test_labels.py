"""Names of adaptations, and pins that keep them until they are deleted."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.adaptations import registry
from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.budget import evict, next_to_delete
from refine_server.server.adaptations.label import Label
from refine_server.ttt.interface.config import AdaptConfig

MakeClient = Callable[..., TestClient]
DOCUMENT = "alpha text"
pytestmark = pytest.mark.usefixtures("all_spare")


def ready(client: TestClient, document: str = DOCUMENT, **fields: Any) -> dict[str, Any]:
    made = client.post("/v1/adaptations", json={"document": document, **fields}).json()
    for _ in range(1000):
        resource = shown(client, made["id"])
        if resource["status"] == "ready":
            return resource
        time.sleep(0.005)
    raise AssertionError("it did not end")


def shown(client: TestClient, adaptation_id: str) -> dict[str, Any]:
    resource: dict[str, Any] = client.get(f"/v1/adaptations/{adaptation_id}").json()
    return resource


def change(client: TestClient, adaptation_id: str, **changes: Any) -> Any:
    return client.patch(f"/v1/adaptations/{adaptation_id}", json=changes)


def test_an_adaptation_gets_a_name_and_a_pin(client: TestClient) -> None:
    made = ready(client)
    assert (made["name"], made["pinned"]) == (None, False)
    named = change(client, made["id"], name="Port Ellery").json()
    assert (named["name"], named["pinned"]) == ("Port Ellery", False)
    pinned = change(client, made["id"], pinned=True).json()
    assert (pinned["name"], pinned["pinned"], pinned["expires_at"]) == ("Port Ellery", True, None)
    [listed] = client.get("/v1/adaptations").json()["data"]
    assert (listed["name"], listed["pinned"]) == ("Port Ellery", True)
    again = change(client, made["id"], name="", pinned=False).json()
    assert (again["name"], again["pinned"]) == (None, False)
    assert again["expires_at"] > time.time()


def test_both_can_be_set_with_the_request(client: TestClient) -> None:
    made = ready(client, name="Port", pinned=True)
    assert (made["name"], made["pinned"]) == ("Port", True)
    joined = ready(client)  # an equal request says nothing of it
    assert (joined["id"], joined["name"]) == (made["id"], "Port")


@pytest.mark.parametrize("changes", [{"name": "x" * 201}, {"name": 7}, {"pinned": "yes"}, {"x": 1}])
def test_bad_changes_are_named(client: TestClient, changes: dict[str, Any]) -> None:
    made = ready(client)
    response = change(client, made["id"], **changes)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == next(iter(changes))


def test_another_owners_adaptation_is_not_there(make_client: MakeClient) -> None:
    client = make_client(api_keys="alice:alice-alice-alice-1,bob:bob-bob-bob-bob-1")
    alice, bob = ({"x-api-key": key} for key in ("alice-alice-alice-1", "bob-bob-bob-bob-1"))
    made = client.post("/v1/adaptations", json={"document": DOCUMENT}, headers=alice).json()
    path = f"/v1/adaptations/{made['id']}"
    assert client.patch(path, json={"name": "mine"}, headers=bob).status_code == 404
    assert client.patch(path, json={"name": "mine"}, headers=alice).status_code == 200


def test_a_pinned_one_does_not_expire(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.02)
    client = make_client()
    kept = ready(client, ttl_seconds=0.05, pinned=True)
    time.sleep(0.3)
    assert shown(client, kept["id"])["status"] == "ready"
    change(client, kept["id"], pinned=False)
    time.sleep(0.3)
    assert client.get(f"/v1/adaptations/{kept['id']}").status_code == 404


def test_name_and_pin_survive_a_restart(make_client: MakeClient, tmp_path: Path) -> None:
    first = make_client(store=tmp_path.as_uri())
    made = ready(first, ttl_seconds=0.2, name="Port", pinned=True)
    time.sleep(0.3)
    found = shown(make_client(store=tmp_path.as_uri()), made["id"])
    assert (found["name"], found["pinned"]) == ("Port", True)


def test_another_server_on_the_store_sees_them(
    make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "CONFIRM_SECONDS", 0.0)
    one, other = (make_client(store=tmp_path.as_uri()) for _ in range(2))
    made = ready(one)
    assert shown(other, made["id"])["name"] is None
    change(one, made["id"], name="Port")
    assert shown(other, made["id"])["name"] == "Port"


@pytest.mark.anyio
async def test_a_pinned_one_does_not_give_way() -> None:
    pinned, free = (Adaptation(id, "a", None, AdaptConfig(), 60.0) for id in ("p", "f"))
    for adaptation in (pinned, free):
        adaptation.status, adaptation.nbytes, adaptation.stored_bytes = Status.READY, 10, 10
        adaptation.stored = True
    pinned.label, pinned.last_used = Label(pinned=True), 0.0
    assert next_to_delete([pinned, free], 10, []) is free
    assert next_to_delete([pinned], 5, []) is None


@pytest.mark.anyio
async def test_a_pinned_one_that_is_not_stored_stays_in_memory() -> None:
    adaptation = Adaptation("p", "a", None, AdaptConfig(), 60.0)
    adaptation.status, adaptation.nbytes = Status.READY, 10
    adaptation.document = object()  # type: ignore[assignment]
    adaptation.label = Label(pinned=True)
    assert evict([adaptation], 0) == []
    adaptation.stored = True
    assert evict([adaptation], 0) == [adaptation]
