"""Quotas of API keys, on a simulated clock."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from refine_server.server.access.keys import KeyEntry, Keyring, Principal, Quotas, new_key
from refine_server.server.access.quotas import QuotaKeeper, TokenBucket
from refine_server.server.http.errors import ApiError

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 1}}}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def keeper(clock: Clock, **quotas: int) -> tuple[QuotaKeeper, Principal]:
    _, entry = new_key("a")
    keyring = Keyring((KeyEntry(name="a", sha256=entry.sha256, quotas=Quotas(**quotas)),))
    return QuotaKeeper(keyring, clock), keyring.principals["a"]


@given(
    limit=st.integers(1, 50),
    asked=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 40)), max_size=40),
)
def test_a_bucket_never_gives_more_than_its_rate(
    limit: int, asked: list[tuple[int, float]]
) -> None:
    now = 0.0
    bucket = TokenBucket(limit, 60.0, now)
    given_at: list[tuple[float, int]] = []
    for units, pause in asked:
        now += pause
        wait = bucket.wait(units, now)
        assert math.isinf(wait) == (units > limit)
        if wait == 0.0:
            bucket.take(units, now)
            given_at.append((now, units))
        elif not math.isinf(wait):
            assert bucket.wait(units, now + wait) == pytest.approx(0.0, abs=1e-6)
    for begin, _ in given_at:
        # The initial content and what is refilled over time.
        spent = sum(units for at, units in given_at if begin <= at <= begin + 60.0)
        assert spent <= 2 * limit + 1e-6


def test_requests_per_minute() -> None:
    clock = Clock()
    quotas, alice = keeper(clock, requests_per_minute=2)
    for _ in range(2):
        with quotas.request(alice):
            pass
    with pytest.raises(ApiError, match="requests_per_minute") as refused, quotas.request(alice):
        pass
    assert (refused.value.status_code, refused.value.retry_after) == (429, 30)
    clock.now = 30.0
    with quotas.request(alice):
        pass


def test_concurrent_requests_are_given_back_however_they_end() -> None:
    quotas, alice = keeper(Clock(), concurrent_requests=1)
    with (
        quotas.request(alice),
        pytest.raises(ApiError, match="concurrent_requests"),
        quotas.request(alice),
    ):
        pass
    with pytest.raises(KeyError), quotas.request(alice):
        raise KeyError
    with quotas.request(alice):
        pass


def test_document_tokens_per_hour_are_charged_for_admitted_requests_only() -> None:
    clock = Clock()
    quotas, _ = keeper(clock, document_tokens_per_hour=3600)
    with pytest.raises(KeyError), quotas.document("a", 3000):
        raise KeyError
    with quotas.document("a", 3000):
        pass
    with pytest.raises(ApiError) as refused, quotas.document("a", 700):
        pass
    assert refused.value.body.error.code == "quota_document_tokens_per_hour"
    assert (refused.value.status_code, refused.value.retry_after) == (429, 100)
    clock.now = 100.0
    with quotas.document("a", 700):
        pass
    with pytest.raises(ApiError) as never, quotas.document("a", 3601):
        pass
    assert never.value.status_code == 413


def write_keys(path: Path, **quotas: int) -> dict[str, str]:
    key, entry = new_key("a")
    path.write_text(json.dumps({"keys": [{**entry.model_dump(), "quotas": quotas}]}))
    return {"x-api-key": key}


@pytest.mark.parametrize(
    ("quotas", "answered"),
    [({"requests_per_minute": 2}, 2), ({"document_tokens_per_hour": 15}, 3)],
)
def test_over_a_quota_is_429_that_names_it(
    make_client: Callable[..., TestClient], tmp_path: Path, quotas: dict[str, int], answered: int
) -> None:
    headers = write_keys(tmp_path / "keys.json", **quotas)
    client = make_client(api_keys_file=tmp_path / "keys.json")
    replies = [client.post("/v1/answers", json=BODY, headers=headers) for _ in range(4)]
    assert [r.status_code for r in replies] == [200] * answered + [429] * (4 - answered)
    error = replies[-1].json()["error"]
    assert error["code"] == f"quota_{next(iter(quotas))}"
    assert error["type"] == "rate_limit_error"
    assert int(replies[-1].headers["retry-after"]) >= 1
    assert client.get("/health/ready", headers=headers).status_code == 200


def test_bytes_of_kept_adaptations(make_client: Callable[..., TestClient], tmp_path: Path) -> None:
    """Each adaptation takes slightly more than 4,000 bytes."""
    headers = write_keys(tmp_path / "keys.json", adaptation_bytes=10_000)
    client = make_client(api_keys_file=tmp_path / "keys.json")
    client.headers.update(headers)

    def create(document: str) -> tuple[int, str]:
        body = {"document": document, "adapt": {"optimizer": {"steps": 1}}}
        reply = client.post("/v1/adaptations", json=body)
        if not reply.is_success:
            return reply.status_code, reply.json()["error"]["code"]
        client.get(f"/v1/adaptations/{reply.json()['id']}/events")
        return reply.status_code, reply.json()["id"]

    kept = [create("first")[1], create("second")[1]]
    assert create("third") == (429, "quota_adaptation_bytes")
    assert create("first") == (200, kept[0])  # what is there already costs nothing
    assert client.delete(f"/v1/adaptations/{kept[0]}").status_code == 200
    assert create("third")[0] == 202


def test_unfinished_adaptations_count(
    make_client: Callable[..., TestClient], fake: Any, tmp_path: Path
) -> None:
    headers = write_keys(tmp_path / "keys.json", adaptation_bytes=10_000)
    client = make_client(api_keys_file=tmp_path / "keys.json", max_active=4)
    client.headers.update(headers)
    statuses = []
    for document in ("first", fake.hold("second"), fake.hold("third")):
        body = {"document": document, "adapt": {"optimizer": {"steps": 1}}}
        reply = client.post("/v1/adaptations", json=body)
        statuses.append(reply.status_code)
        if document == "first":
            client.get(f"/v1/adaptations/{reply.json()['id']}/events")
    assert statuses == [202, 202, 429]
    fake.gate.set()


def test_requests_at_the_same_time(
    live: Callable[..., str], fake: Any, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    headers = write_keys(tmp_path / "keys.json", concurrent_requests=1)
    url = live(api_keys_file=tmp_path / "keys.json")
    held = {"document": fake.hold("held"), "query": "who", "adapt": {"optimizer": {"steps": 1}}}
    got: list[int] = []

    def ask() -> None:
        got.append(httpx.post(f"{url}/v1/answers", json=held, headers=headers).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: fake.turns == ["who"])
    refused = httpx.post(f"{url}/v1/answers", json=held, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        429,
        "quota_concurrent_requests",
    )
    fake.gate.set()
    thread.join()
    assert got == [200]
    assert httpx.get(f"{url}/version", headers=headers).status_code == 200
