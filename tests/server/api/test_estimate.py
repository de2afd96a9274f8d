"""What a request would cost, and whether it would be admitted, without its work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.access.keys import new_key
from support.fake_backend import FakeBackend

ANSWER = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 4}}}
ADAPTATION = {"document": "a b c", "adapt": {"optimizer": {"steps": 4}}}


def estimate(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/estimate", json=body)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


@pytest.mark.parametrize("body", [ANSWER, ADAPTATION], ids=["answer", "adaptation"])
def test_phases_tokens_and_admission_are_told_and_nothing_is_done(
    client: TestClient, fake: FakeBackend, body: dict[str, Any]
) -> None:
    fake.bytes_per_token = 1000
    told = estimate(client, body)
    cost = told["estimate"]
    phases = [cost[f"{phase}_seconds"] for phase in ("read", "adapt", "decode")]
    assert cost["total_seconds"] == pytest.approx(sum(phases), abs=0.02)
    assert cost["adapt_seconds"] > 0
    assert (cost["decode_seconds"] > 0) is ("query" in body)
    assert told["document_tokens"] == 5
    assert cost["memory_bytes"] == 5000
    assert (told["query_tokens"] is not None) is ("query" in body)
    assert (told["admitted"], told["refusal"], told["queue_position"]) == (True, None, 0)
    assert told["seconds_left"] == pytest.approx(cost["total_seconds"], abs=0.02)
    assert fake.turns == []
    assert client.get("/v1/adaptations").json()["data"] == []


def test_the_202_and_the_first_event_tell_the_same_memory(
    client: TestClient, fake: FakeBackend
) -> None:
    fake.bytes_per_token = 1000
    expected = estimate(client, ADAPTATION)["estimate"]["memory_bytes"]
    assert expected == 5000
    accepted = client.post("/v1/adaptations", json=ADAPTATION).json()
    assert accepted["estimate"]["memory_bytes"] == expected
    with client.stream("POST", "/v1/answers", json={**ANSWER, "stream": True}) as response:
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
    assert json.loads(first.removeprefix("data: "))["estimate"]["memory_bytes"] == expected


def test_more_steps_cost_more(client: TestClient) -> None:
    many = {**ANSWER, "adapt": {"optimizer": {"steps": 240}}}
    few, more = estimate(client, ANSWER), estimate(client, many)
    assert more["estimate"]["adapt_seconds"] > 50 * few["estimate"]["adapt_seconds"]


BUSY: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"max_queue": 0}, {}, "--max-queue"),
    ({"max_queue_seconds": 1e-9}, {}, "--max-queue-seconds"),
    ({}, {"timeout_seconds": 1.5}, "--request-timeout-seconds"),
]


@pytest.mark.parametrize(("settings", "fields", "option"), BUSY)
def test_a_refusal_names_the_option_of_the_limit(
    make_client: Callable[..., TestClient],
    fake: FakeBackend,
    wait_for: Callable[..., None],
    settings: dict[str, Any],
    fields: dict[str, Any],
    option: str,
) -> None:
    client = make_client(max_active=1, **settings)
    held = client.post("/v1/adaptations", json={"document": fake.hold("held text")})
    assert held.status_code == 202
    wait_for(lambda: fake.turns)
    if "max_queue_seconds" in settings:
        waiting = client.post("/v1/adaptations", json={"document": "waits"})
        assert waiting.status_code == 202
    told = estimate(client, {**ANSWER, **fields})
    assert told["admitted"] is False
    assert (told["refusal"]["status"], told["refusal"]["option"]) == (429, option)
    assert option in told["refusal"]["message"]
    assert told["refusal"]["retry_after"] >= 1
    refused = client.post("/v1/answers", json={**ANSWER, **fields})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == told["refusal"]["code"]


def test_a_quota_is_held_against_and_not_charged(
    make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    key, entry = new_key("a")
    quotas = {"document_tokens_per_hour": 8}
    (tmp_path / "keys.json").write_text(
        json.dumps({"keys": [{**entry.model_dump(), "quotas": quotas}]})
    )
    client = make_client(api_keys_file=tmp_path / "keys.json")
    client.headers["x-api-key"] = key
    assert [estimate(client, ANSWER)["admitted"] for _ in range(3)] == [True, True, True]
    assert client.post("/v1/answers", json=ANSWER).status_code == 200  # 5 tokens
    told = estimate(client, ANSWER)
    assert told["admitted"] is False
    assert told["refusal"]["code"] == "quota_document_tokens_per_hour"


def test_an_equal_adaptation_would_be_joined(
    client: TestClient, wait_for: Callable[..., None]
) -> None:
    made = client.post("/v1/adaptations", json=ADAPTATION).json()["id"]
    assert estimate(client, ADAPTATION)["adaptation"] == made
    assert estimate(client, {**ADAPTATION, "document": "d e"})["adaptation"] is None
    path = f"/v1/adaptations/{made}"
    wait_for(lambda: client.get(path).json()["status"] == "ready")
    told = estimate(client, {"adaptation": made, "query": "who"})
    assert (told["document_tokens"], told["estimate"]["adapt_seconds"]) == (None, 0.0)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({**ANSWER, "colour": 1}, 422, "colour"),
        ({**ADAPTATION, "colour": 1}, 422, "colour"),
        ({"query": "who"}, 422, "document"),
        ({}, 422, "document"),
        ({**ANSWER, "adapt": {"optimizer": {"steps": -1}}}, 422, "adapt.optimizer.steps"),
        ({**ANSWER, "document": "word " * 200}, 413, "document"),
        ({"adaptation": "adapt-0", "query": "who"}, 404, "adaptation"),
        ({**ANSWER, "model": "other"}, 404, "model"),
    ],
)
def test_errors_are_those_of_the_request_itself(
    client: TestClient, body: dict[str, Any], status: int, param: str
) -> None:
    route = "/v1/answers" if "query" in body else "/v1/adaptations"
    told, real = client.post("/v1/estimate", json=body), client.post(route, json=body)
    assert (told.status_code, told.json()["error"]["param"]) == (status, param)
    assert told.json() == real.json()


def test_an_adaptation_that_is_being_made_cannot_be_asked_yet(
    client: TestClient, fake: FakeBackend
) -> None:
    made = client.post("/v1/adaptations", json={"document": fake.hold("held text")}).json()["id"]
    told = client.post("/v1/estimate", json={"adaptation": made, "query": "who"})
    assert (told.status_code, told.json()["error"]["code"]) == (409, "adaptation_not_ready")
