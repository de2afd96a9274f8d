"""Refused requests: counted by reason and by the key's name, at the endpoint that was asked."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from refine_server.server.access.keys import new_key

BODY = {"document": "a b c", "query": "who"}
KEY = "alice-alice-alice-1"
ALICE = {"authorization": f"Bearer {KEY}"}
MakeClient = Callable[..., TestClient]


def counted(client: TestClient, prefix: str) -> dict[str, float]:
    lines = client.get("/metrics", headers=ALICE).text.splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line.startswith(prefix))
    return {series: float(value) for series, value in found}


def rejections(client: TestClient) -> dict[str, float]:
    return counted(client, "refine_rejections_total")


def test_a_missing_key_is_a_rejection_of_nobody_at_the_route(make_client: MakeClient) -> None:
    client = make_client(api_keys=f"alice:{KEY}")
    client.post("/v1/answers", json=BODY)
    client.get("/v1/adaptations/adapt-12345", headers={"x-api-key": "wrong"})
    assert rejections(client) == {
        'refine_rejections_total{key="-",reason="invalid_api_key"}': 2.0,
    }
    asked = counted(client, "refine_requests_total")
    assert asked['refine_requests_total{endpoint="/v1/answers",status="401"}'] == 1.0
    assert (
        asked['refine_requests_total{endpoint="/v1/adaptations/{adaptation_id}",status="401"}']
        == 1.0
    )


def test_a_quota_is_a_rejection_of_its_key(make_client: MakeClient, tmp_path: Path) -> None:
    key, entry = new_key("bob")
    file = tmp_path / "keys.toml"
    file.write_text(f"{entry.toml()}\n[keys.quotas]\nrequests_per_minute = 1\n")
    client = make_client(api_keys_file=file, api_keys=f"alice:{KEY}")
    bob = {"authorization": f"Bearer {key}"}
    assert client.get("/v1/models", headers=bob).status_code == 200
    assert client.get("/v1/models", headers=bob).status_code == 429
    assert rejections(client) == {
        'refine_rejections_total{key="bob",reason="quota_requests_per_minute"}': 1.0,
    }
    asked = counted(client, "refine_requests_total")
    assert asked['refine_requests_total{endpoint="/v1/models",status="429"}'] == 1.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({**BODY, "nonsense": 1}, "unknown_field"),
        ({**BODY, "document": "a " * 1000}, "document_too_long"),
    ],
)
def test_a_refused_body_is_counted_and_logged_by_its_code(
    client: TestClient, caplog: pytest.LogCaptureFixture, body: object, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    status = client.post("/v1/answers", json=body).status_code
    assert rejections(client) == {
        f'refine_rejections_total{{key="local",reason="{reason}"}}': 1.0,
    }
    [line] = [vars(r) for r in caplog.records if f"answers {status}" in r.getMessage()]
    assert line["error"] == reason


def test_answers_and_probes_are_no_rejections(make_client: MakeClient) -> None:
    client = make_client()
    client.post("/v1/answers", json=BODY)
    client.get("/health/ready", params={"x": "y"})
    assert rejections(client) == {}
