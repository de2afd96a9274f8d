"""Adapt once, ask many times: the life cycle of adaptations over HTTP, on the scripted model."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.server.adaptations.adaptation import Adaptation
from refine_server.server.adaptations.storage import Saved, Storage
from support.fake_backend import FakeBackend

MakeClient = Callable[..., TestClient]
WaitFor = Callable[..., None]

DOCUMENT = "alpha text"
pytestmark = pytest.mark.usefixtures("all_spare")


def create(client: TestClient, document: str = DOCUMENT, **fields: Any) -> Any:
    return client.post("/v1/adaptations", json={"document": document, **fields})


def until_ready(client: TestClient, adaptation_id: str) -> dict[str, Any]:
    for _ in range(1000):
        resource: dict[str, Any] = client.get(f"/v1/adaptations/{adaptation_id}").json()
        if resource["status"] not in ("queued", "adapting"):
            return resource
        time.sleep(0.005)
    raise AssertionError("it did not end")


def ready(client: TestClient, document: str = DOCUMENT, **fields: Any) -> dict[str, Any]:
    made = create(client, document, **fields)
    assert made.status_code in (200, 202), made.text
    return until_ready(client, made.json()["id"])


def events(client: TestClient, adaptation_id: str) -> list[tuple[str, dict[str, Any]]]:
    text = client.get(f"/v1/adaptations/{adaptation_id}/events").text
    blocks = [b.splitlines() for b in text.replace("\r\n", "\n").split("\n\n") if "event:" in b]
    found = [
        (b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks
    ]
    return [(name, data) for name, data in found if name != "request.progress"]


def metric(client: TestClient, name: str) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    raise AssertionError(name)


def test_a_document_is_adapted_to_once_and_asked_many_times(
    client: TestClient, fake: FakeBackend
) -> None:
    made = create(client, adapt={"optimizer": {"steps": 3}})
    assert made.status_code == 202
    resource = until_ready(client, made.json()["id"])
    assert made.headers["location"] == f"/v1/adaptations/{resource['id']}"
    assert (resource["status"], resource["accepted_step"], len(resource["steps"])) == (
        "ready",
        3,
        3,
    )
    assert resource["in_memory"]
    assert resource["bytes"] >= 4000
    assert 3500 < resource["expires_at"] - time.time() <= 3600
    for query in ("who?", "where?"):
        body = {"query": query, "adaptation": resource["id"]}
        answer = client.post("/v1/answers", json=body).json()
        assert answer["answer"] == "alpha"
        assert answer["adaptation"] == resource["id"]
        assert answer["answered_by"] == "adapted"
    assert fake.turns.count("alpha") == 3
    listed = client.get("/v1/adaptations").json()["data"]
    assert [r["id"] for r in listed] == [resource["id"]]


def test_a_document_that_is_null_is_no_document(client: TestClient) -> None:
    body = {"query": "who?", "adaptation": ready(client)["id"], "document": None}
    assert client.post("/v1/answers", json=body).is_success


def test_a_streamed_answer_comes_from_the_adaptation(client: TestClient) -> None:
    resource = ready(client)
    body = {"query": "who?", "adaptation": resource["id"], "stream": True}
    text = client.post("/v1/answers", json=body).text
    assert text.count("event: answer.delta") == 5
    assert '"answer":"alpha"' in text


def test_events_report_every_step_and_then_the_end(client: TestClient) -> None:
    resource = ready(client, adapt={"optimizer": {"steps": 4}})
    received = events(client, resource["id"])
    assert [name for name, _ in received] == [
        *("request.accepted", "document.reading", "document.reading", "adaptation.started"),
        *(["adaptation.step"] * 4),
        "adaptation.ready",
    ]
    assert received[0][1]["id"] == received[-1][1]["id"] == resource["id"]
    steps = [data for name, data in received if name == "adaptation.step"]
    assert [(step["step"], step["steps"]) for step in steps] == [(n, 4) for n in (1, 2, 3, 4)]


def test_the_unadapted_model_answers_beside_a_kept_adaptation(client: TestClient) -> None:
    made = ready(client)
    asked = {"adaptation": made["id"], "query": "who", "compare_base": True}
    answer = client.post("/v1/answers", json=asked).json()
    assert answer["base_answer"] == "base says no"
    assert (answer["adaptation"], answer["adaptation_report"]) == (made["id"], None)


def test_the_same_document_joins_and_another_configuration_does_not(
    client: TestClient, fake: FakeBackend
) -> None:
    fake.hold("held text")
    first = create(client, "held text", adapt={"optimizer": {"steps": 2}}).json()
    second = create(client, "held text", adapt={"optimizer": {"steps": 2}}).json()
    other = create(client, "held text", adapt={"optimizer": {"steps": 2}, "seed": 1}).json()
    assert first["id"] == second["id"] != other["id"]
    fake.gate.set()
    until_ready(client, other["id"])
    again = create(client, "held text", adapt={"optimizer": {"steps": 2}})
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert fake.closed.count("held") == 2
    assert metric(client, "refine_adaptation_cache_hits_total") == 2
    assert metric(client, "refine_adaptation_cache_misses_total") == 2


def test_deleting_a_running_adaptation_cancels_it(
    client: TestClient, fake: FakeBackend, wait_for: WaitFor
) -> None:
    running = create(client, fake.hold("held text"), adapt={"optimizer": {"steps": 9}}).json()
    wait_for(lambda: fake.turns == ["held"])
    deleted = client.delete(f"/v1/adaptations/{running['id']}")
    assert deleted.json() == {
        "id": running["id"],
        "object": "adaptation.deleted",
        "deleted": True,
    }
    fake.gate.set()
    wait_for(lambda: fake.closed == ["held"])
    assert fake.turns == ["held"]
    assert client.get(f"/v1/adaptations/{running['id']}").status_code == 404
    wait_for(lambda: metric(client, 'refine_wasted_seconds_total{reason="deleted"}') > 0)


def test_a_question_waits_for_an_adaptation_that_is_being_made(
    live: Callable[..., str], fake: FakeBackend
) -> None:
    url = live()
    made = httpx.post(f"{url}/v1/adaptations", json={"document": fake.hold("held text")}).json()
    threading.Timer(0.2, fake.gate.set).start()
    answer = httpx.post(f"{url}/v1/answers", json={"query": "q", "adaptation": made["id"]})
    assert answer.json()["answer"] == "held"


BY_QUERY = {"on": {"kind": "query_spans"}}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "document"),
        ({"document": ""}, 422, "document"),
        ({"document": " \n"}, 422, "document"),
        ({"document": 5}, 422, "document"),
        ({"document": "x", "adapt": {"optimizer": {"steps": -1}}}, 422, "adapt.optimizer.steps"),
        ({"document": "x", "adapt": BY_QUERY}, 422, "adapt.on.kind"),
        ({"document": "x", "ttl_seconds": 0}, 422, "ttl_seconds"),
        ({"document": "x", "priority": 11}, 422, "priority"),
        ({"document": "x", "colour": "red"}, 422, "colour"),
        ({"document": "x", "model": "other"}, 404, "model"),
        ({"document": "w " * 400}, 413, "document"),
    ],
)
def test_bad_input_names_the_field_and_leaves_nothing(
    client: TestClient, body: dict[str, Any], status: int, param: str
) -> None:
    refused = client.post("/v1/adaptations", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
    assert client.get("/v1/adaptations").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"query": "q"}, 422, "document"),
        ({"query": "q", "adaptation": "adapt-0"}, 404, "adaptation"),
        ({"query": "q", "model": "adapt-0"}, 404, "model"),
        ({"query": "q", "adaptation": "{id}", "document": "x"}, 422, "document"),
        ({"query": "q", "adaptation": "{id}", "adapt": {"optimizer": {"steps": 1}}}, 422, "adapt"),
        ({"query": "q", "adaptation": "{id}", "evidence": {"by": "bm25"}}, 422, "evidence"),
        ({"query": "q", "adaptation": "{id}", "model": "other"}, 404, "model"),
    ],
)
def test_a_question_needs_one_document(
    client: TestClient, body: dict[str, Any], status: int, param: str
) -> None:
    made = ready(client)["id"]
    body = {k: v.format(id=made) if isinstance(v, str) else v for k, v in body.items()}
    refused = client.post("/v1/answers", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


def test_a_failed_adaptation_is_reported_and_can_be_retried(
    client: TestClient, fake: FakeBackend
) -> None:
    resource = ready(client, fake.fail("crash text"))
    assert resource["status"] == "failed"
    assert resource["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(resource)
    assert events(client, resource["id"])[-1][0] == "adaptation.failed"
    refused = client.post("/v1/answers", json={"query": "q", "adaptation": resource["id"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adaptation_failed")
    assert ready(client, "crash text")["id"] != resource["id"]


def test_unused_adaptations_expire(make_client: MakeClient, wait_for: WaitFor) -> None:
    client = make_client()
    brief = ready(client, ttl_seconds=0.2)["id"]
    kept = ready(client, "beta text")["id"]
    wait_for(lambda: client.get(f"/v1/adaptations/{brief}").status_code == 404)
    assert [r["id"] for r in client.get("/v1/adaptations").json()["data"]] == [kept]


def test_the_least_recently_used_adaptation_is_evicted(make_client: MakeClient) -> None:
    client = make_client(memory_bytes=4 * 9000)  # two documents of 4,000 bytes and some
    first, second = ready(client, "alpha x")["id"], ready(client, "beta x")["id"]
    client.post("/v1/answers", json={"query": "q", "adaptation": first})
    third = ready(client, "gamma x")["id"]
    assert client.get(f"/v1/adaptations/{second}").status_code == 404  # there is no store
    assert {r["id"] for r in client.get("/v1/adaptations").json()["data"]} == {first, third}
    assert metric(client, "refine_adaptation_cache_evictions_total") == 1
    assert 0 < metric(client, 'refine_memory_bytes{kind="adaptations"}') <= 9000


def test_stored_adaptations_are_loaded_again(make_client: MakeClient, tmp_path: Path) -> None:
    options = {"store": tmp_path.as_uri(), "memory_bytes": 4 * 9000}
    client = make_client(**options)
    made = [ready(client, f"{name} x")["id"] for name in ("alpha", "beta", "gamma")]
    assert all(client.get(f"/v1/adaptations/{i}").json()["stored"] for i in made)
    for again in (client, make_client(**options)):  # evicted; and by another process
        listed = again.get("/v1/adaptations").json()["data"]
        assert {r["id"] for r in listed} == set(made)
        for adaptation_id, name in zip(made, ("alpha", "beta", "gamma"), strict=True):
            body = {"query": "q", "adaptation": adaptation_id}
            assert again.post("/v1/answers", json=body).json()["answer"] == name
    joined = create(again, "beta x")
    assert (joined.status_code, joined.json()["id"]) == (200, made[1])
    again.delete(f"/v1/adaptations/{made[1]}")
    assert {r["id"] for r in make_client(**options).get("/v1/adaptations").json()["data"]} == {
        made[0],
        made[2],
    }


def test_an_adaptation_stays_in_memory_while_it_is_stored(
    make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor
) -> None:
    gates = [threading.Event(), threading.Event()]
    saving: list[str] = []
    save = Storage.save

    async def held(self: Storage, adaptation: Adaptation, document: Any) -> Saved:
        saving.append(adaptation.id)
        await asyncio.to_thread(gates[len(saving) - 1].wait, 10)
        return await save(self, adaptation, document)

    monkeypatch.setattr(Storage, "save", held)
    client = make_client(store=tmp_path.as_uri(), memory_bytes=4 * 5000)
    first = create(client, "alpha x").json()["id"]
    wait_for(lambda: saving == [first])
    second = create(client, "beta x").json()["id"]
    wait_for(lambda: saving == [first, second])
    gates[0].set()  # with the first one ready there is one too many in memory
    until_ready(client, first)
    gates[1].set()
    assert until_ready(client, second)["stored"]


def test_a_damaged_entry_is_refused_with_a_reason(make_client: MakeClient, tmp_path: Path) -> None:
    made = ready(make_client(store=tmp_path.as_uri()))["id"]
    (data,) = tmp_path.rglob("*.safetensors")
    data.write_bytes(data.read_bytes()[:-1])
    client = make_client(store=tmp_path.as_uri())
    refused = client.post("/v1/answers", json={"query": "q", "adaptation": made})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adaptation_lost")
    assert "checksum" in refused.json()["error"]["message"]
    assert client.get(f"/v1/adaptations/{made}").status_code == 404
    assert metric(client, 'refine_store_errors_total{operation="load"}') == 1


def test_a_store_that_fails_costs_durability_only(make_client: MakeClient, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    client = make_client(store=folder.as_uri())
    shutil.rmtree(folder)
    folder.write_text("not a directory")
    resource = ready(client)
    assert (resource["status"], resource["stored"]) == ("ready", False)
    assert client.post("/v1/answers", json={"query": "q", "adaptation": resource["id"]}).is_success
    assert metric(client, 'refine_store_errors_total{operation="save"}') == 1


def test_the_number_of_adaptations_is_limited(make_client: MakeClient) -> None:
    client = make_client(max_adaptations=2)
    ready(client, "alpha x")
    ready(client, "beta x")
    refused = create(client, "gamma x")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_adaptations")
    assert create(client, "alpha x").status_code == 200


def test_a_full_queue_refuses_before_anything_is_paid(
    make_client: MakeClient, fake: FakeBackend
) -> None:
    client = make_client(max_active=1, max_queue=1)
    done = ready(client, "alpha x")["id"]
    create(client, fake.hold("held x"))
    create(client, "beta x")
    refused = create(client, "gamma x")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    statuses = [r["status"] for r in client.get("/v1/adaptations").json()["data"]]
    assert len(statuses) == 3
    fake.gate.set()
    assert client.post("/v1/answers", json={"query": "q", "adaptation": done}).is_success


def test_running_adaptations_are_kept_as_they_are_at_shutdown(
    make_app: Callable[..., FastAPI], fake: FakeBackend, wait_for: WaitFor, tmp_path: Path
) -> None:
    options = {"store": tmp_path.as_uri(), "shutdown_seconds": 2.0}
    with TestClient(make_app(**options)) as client:
        wait_for(lambda: client.get("/health/ready").is_success)
        made = create(client, fake.slow_down("slow x"), adapt={"optimizer": {"steps": 200}}).json()
        wait_for(lambda: fake.turns)  # one that has not begun would be given up
    with TestClient(make_app(**options)) as client:
        wait_for(lambda: client.get("/health/ready").is_success)
        resource = until_ready(client, made["id"])
        assert (resource["status"], resource["stopped"]) == ("ready", "shutdown")
        assert 0 < len(resource["steps"]) < 200
        assert (
            create(client, "slow x", adapt={"optimizer": {"steps": 200}}).json()["id"] != made["id"]
        )


def test_a_request_may_have_a_shorter_timeout_than_the_server(
    client: TestClient, fake: FakeBackend
) -> None:
    body = {"document": fake.hold("held"), "query": "q", "timeout_seconds": 0.5, "max_tokens": 1}
    late = client.post("/v1/answers", json=body)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    made = create(client, "held y", timeout_seconds=0.1).json()
    ended = until_ready(client, made["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "timeout")
    fake.gate.set()


def test_high_priority_is_admitted_before_low_priority(
    make_client: MakeClient, fake: FakeBackend, wait_for: WaitFor
) -> None:
    client = make_client(max_active=1)
    create(client, fake.hold("held x"))
    wait_for(lambda: fake.turns == ["held"])
    for name, priority in (("patient", 5), ("plain", 0), ("urgent", -5)):
        create(client, f"{name} x", priority=priority)
    fake.gate.set()
    wait_for(lambda: len(fake.closed) == 4)
    assert fake.closed == ["held", "urgent", "plain", "patient"]
