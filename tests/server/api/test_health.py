from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from support.fake_backend import Script

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 2}}}

SERIES = [
    'refine_requests_total{endpoint="/v1/answers",status="200"} 1.0',
    'refine_requests_total{endpoint="unmatched",status="404"} 1.0',
    'refine_request_seconds_count{endpoint="/v1/answers"} 1.0',
    "refine_queue_depth 0.0",
    "refine_queue_seconds_count 1.0",
    "refine_prefill_seconds_count 1.0",
    'refine_adapt_seconds_count{objective="refine"} 1.0',
    "refine_adapt_step_seconds_count 2.0",
    "refine_decode_seconds_count 1.0",
    'refine_time_to_first_token_seconds_count{answered_by="kept_base"} 1.0',
    "refine_inter_token_seconds_count 2.0",
    "refine_document_tokens_sum",
    "refine_generated_tokens_total 3.0",
    "refine_rollout_tokens_total 20.0",
    "refine_reward_count 2.0",
    "refine_ntp_loss_delta_count 1.0",
    'refine_kept_base_total{reason="no_better_step"} 1.0',
    'refine_model_info{device="cpu",dtype="float32",family="delta_net",model="fake"',
    "process_resident_memory_bytes",
    'refine_decode_seconds_bucket{le="600.0"}',
]


def test_metrics_are_all_there_and_labels_hold_no_paths(client: TestClient, fake: Any) -> None:
    worse = fake.script("worse", Script(kept_base_reason="no_better_step"))
    assert client.post("/v1/answers", json={**BODY, "document": worse}).status_code == 200
    client.get("/secret/path/12345")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for series in SERIES:
        assert series in response.text
    assert "12345" not in response.text
    assert list(text_string_to_metric_families(response.text))


OPENMETRICS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""What Prometheus 2 sends."""


@pytest.mark.parametrize("accept", [OPENMETRICS, "application/openmetrics-text"])
def test_metrics_are_openmetrics_for_those_who_accept_it(client: TestClient, accept: str) -> None:
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0")
    assert response.text.endswith("# EOF\n")
    # The parser demands the sums of all histograms. OpenMetrics forbids those of values below 0.
    below_zero = ("refine_reward", "refine_ntp_loss_delta")
    lines = [
        line
        for line in response.text.splitlines(keepends=True)
        if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(below_zero)
    ]
    assert list(openmetrics.text_string_to_metric_families("".join(lines)))


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain", "text/html", "application/openmetrics-text;version=x", "x;" * 900,
     "application/openmetrics-text;version=0.0.1", "text/plain;version=1.x;escaping=none"],
)  # fmt: skip
def test_metrics_are_plain_text_for_others(client: TestClient, accept: str) -> None:
    response = client.get("/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert list(text_string_to_metric_families(response.text))


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
def test_no_series_says_when_another_was_created(client: TestClient, accept: str) -> None:
    client.post("/v1/answers", json=BODY)
    assert "_created" not in client.get("/metrics", headers={"accept": accept}).text


def test_nan_does_not_poison_the_metrics(client: TestClient, fake: Any) -> None:
    nan = fake.script("nan", Script(loss=float("nan")))
    client.post("/v1/answers", json={**BODY, "document": nan})
    assert " NaN" not in client.get("/metrics").text


def test_two_apps_do_not_share_metrics(make_client: Callable[..., TestClient]) -> None:
    first, second = make_client(), make_client()
    first.post("/v1/answers", json=BODY)
    assert "refine_queue_seconds_count 0.0" in second.get("/metrics").text


def test_live_before_ready(
    make_app: Callable[..., FastAPI], fake: Any, wait_for: Callable[..., None]
) -> None:
    fake.open_gate.clear()
    app = make_app()
    with TestClient(app) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        for response in (
            client.get("/health/ready"),
            client.get("/v1/models"),
            client.post("/v1/answers", json=BODY),
        ):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "loading"
            assert int(response.headers["retry-after"]) >= 1
        fake.open_gate.set()
        wait_for(lambda: client.get("/health/ready").is_success)
        assert client.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("failure", [ValueError("no such model"), RuntimeError("out of memory")])
def test_a_model_that_cannot_be_loaded_is_not_ready(
    make_client: Callable[..., TestClient], fake: Any, failure: Exception
) -> None:
    fake.fails_to_open = failure
    client = make_client()
    assert client.get("/health/ready").json()["error"]["code"] == "load_failed"
    assert client.get("/health/live").status_code == 200


def test_a_model_that_fails_its_self_check_is_not_ready(
    make_client: Callable[..., TestClient], fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise FloatingPointError("overflow")

    monkeypatch.setattr(fake, "start", broken)
    client = make_client()
    assert client.get("/health/ready").status_code == 503


def test_models_and_version(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert listed["data"][0]["created"] > 1.7e9
    assert listed["data"][0] | {"created": 0} == {
        "id": "fake",
        "object": "model",
        "created": 0,
        "owned_by": "refine-server",
        "family": "delta_net",
        "parameters": 7,
        "fingerprint": "as loaded",
        "prompt_form": "plain",
        "max_model_len": 36_864,
        "context_length": None,
        "parent": None,
    }
    assert client.get("/version").json()["name"] == "refine-server"


def test_each_response_has_a_request_id(client: TestClient, fake: Any) -> None:
    assert client.get("/nowhere").headers["x-request-id"].startswith("req-")
    crashed = client.post("/v1/answers", json={**BODY, "document": fake.fail("crash")})
    assert crashed.headers["x-request-id"]
    given = client.get("/health/live", headers={"x-request-id": "trace-1.a"})
    assert given.headers["x-request-id"] == "trace-1.a"
    odd = client.get("/health/live", headers={"x-request-id": "a b{}"})
    assert odd.headers["x-request-id"].startswith("req-")


def test_the_log_names_the_request_and_not_the_document(
    client: TestClient, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="refine_server")
    headers = {"x-request-id": "find-me"}
    client.post("/v1/answers", json={**BODY, "document": fake.fail("private")}, headers=headers)
    ids = [vars(record).get("request_id") for record in caplog.records]
    assert ids.count("find-me") == 1
    assert "request find-me failed" in caplog.text or "find-me" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize("streamed", [False, True])
def test_a_crash_outside_the_engine_is_an_internal_error(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    streamed: bool,
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("refine_server.server.api.answers.AnswerEncoder.add", broken)
    response = client.post("/v1/answers", json={**BODY, "stream": streamed})
    assert response.status_code == (200 if streamed else 500)
    assert '"code": "internal_error"' in response.text
    assert "secret" not in response.text
    assert response.headers["x-request-id"]
    assert "KeyError: 'secret'" in caplog.text


def test_the_documentation_describes_the_errors(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/v1/answers"]["post"]["responses"]
    documented = {200, 400, 401, 404, 408, 409, 413, 422, 429, 500, 503, 504}
    assert {int(status) for status in responses} == documented
    for status, response in responses.items():
        if status != "200":
            schema = response["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith("/ErrorBody")
    assert "text/event-stream" in responses["200"]["content"]
