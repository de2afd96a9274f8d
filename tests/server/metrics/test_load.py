"""Metrics of what waits, what runs and what was read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from support.fake_backend import FakeBackend, Script

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 2}}}
MakeClient = Callable[..., TestClient]


def shown(client: TestClient, prefix: str) -> dict[str, float]:
    """Return the series that begin with a prefix, and their values."""
    lines = client.get("/metrics").text.splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line.startswith(prefix))
    return {series: float(value) for series, value in found}


def test_what_waits_and_runs_is_told_in_requests_tokens_and_seconds(
    make_client: MakeClient, fake: FakeBackend, wait_for: Callable[..., None]
) -> None:
    client = make_client(max_active=1)
    body = {**BODY, "document": fake.hold("held")}
    tokens = len("held") + len(BODY["query"])  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(client.post, "/v1/answers", json=body) for _ in range(3)]
        wait_for(lambda: shown(client, "refine_queue_depth") == {"refine_queue_depth": 2.0})
        waiting = shown(client, "refine_waiting")
        assert shown(client, "refine_running_requests") == {"refine_running_requests": 1.0}
        fake.gate.set()
        assert [reply.result().status_code for reply in sent] == [200] * 3
    assert 2 * len("held") <= waiting["refine_waiting_tokens"] <= 2 * 2 * tokens
    assert waiting["refine_waiting_seconds"] > 0
    wait_for(lambda: shown(client, "refine_running_requests").popitem()[1] == 0.0)
    assert set(shown(client, "refine_waiting").values()) == {0.0}
    assert shown(client, "refine_busy_seconds_total")["refine_busy_seconds_total"] > 0


@pytest.mark.parametrize(("held", "stage"), [(True, "running"), (False, "queued")])
def test_a_deadline_that_is_missed_is_counted_by_what_the_request_did(
    make_client: MakeClient,
    fake: FakeBackend,
    wait_for: Callable[..., None],
    held: bool,
    stage: str,
) -> None:
    client = make_client(max_active=1)
    late = {**BODY, "document": fake.hold("held")}
    with ThreadPoolExecutor(2) as pool:
        first = None
        if not held:
            first = pool.submit(client.post, "/v1/answers", json=late)
            wait_for(lambda: shown(client, "refine_running").popitem()[1] == 1.0)
        # One token, so that there seems to be time for a step.
        reply = client.post("/v1/answers", json={**late, "timeout_seconds": 0.5, "max_tokens": 1})
        fake.gate.set()
        if first is not None:
            assert first.result().status_code == 200
    assert reply.status_code == 504, reply.text
    counted = f'refine_deadline_misses_total{{stage="{stage}"}}'
    misses = shown(client, "refine_deadline_misses_total")
    assert (misses.pop(counted), set(misses.values())) == (1.0, {0.0})


def test_tokens_are_counted_by_what_they_were_read_as(client: TestClient) -> None:
    answer = client.post("/v1/answers", json=BODY).json()["usage"]
    completion = client.post("/v1/completions", json={"model": "fake", "prompt": "a b"}).json()
    assert shown(client, "refine_prompt_tokens_total") == {
        'refine_prompt_tokens_total{kind="document"}': answer["document_tokens"],
        'refine_prompt_tokens_total{kind="query"}': answer["query_tokens"],
        'refine_prompt_tokens_total{kind="prompt"}': completion["usage"]["prompt_tokens"],
    }


def test_the_build_and_the_store_are_described(make_client: MakeClient, tmp_path: Any) -> None:
    client = make_client(store=tmp_path.as_uri(), store_bytes=12345)
    [build] = shown(client, "refine_build_info")
    assert all(f'{name}="' in build for name in ("version", "torch", "python"))
    assert shown(client, "refine_store_limit_bytes") == {"refine_store_limit_bytes": 12345.0}


def test_memory_has_a_limit_and_a_use_by_kind(make_client: MakeClient) -> None:
    client = make_client(memory_bytes=2**40)
    limits = shown(client, "refine_memory_limit_bytes")
    assert set(limits) == {
        f'refine_memory_limit_bytes{{kind="{kind}"}}'
        for kind in ("adaptations", "requests", "documents")
    }
    assert all(2**36 < limit < 2**40 for limit in limits.values())


def test_a_server_that_does_not_serve_is_not_ready(
    make_client: MakeClient, fake: FakeBackend
) -> None:
    assert shown(make_client(), "refine_ready") == {"refine_ready": 1.0}
    fake.fails_to_open = ValueError("no such model")
    assert shown(make_client(), "refine_ready") == {"refine_ready": 0.0}


def test_a_kept_base_is_an_answer_of_the_base(client: TestClient, fake: FakeBackend) -> None:
    fake.script("worse", Script(kept_base_reason="no_better_step"))
    client.post("/v1/answers", json={**BODY, "document": "worse"})
    [series] = shown(client, "refine_answers_total")
    assert 'answered_by="kept_base"' in series
    assert 'kept_base_reason="no_better_step"' in series
