"""A server that a proxy publishes below a path, which the proxy removes or not."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

BODY = {"document": "a b c", "query": "who"}
KEY = "alice-alice-alice-1"


@pytest.fixture
def below(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(root_path="/refine/v2", api_keys=f"alice:{KEY}")


@pytest.mark.parametrize("prefix", ["", "/refine/v2"])
def test_requests_may_have_the_path_or_not(below: TestClient, prefix: str) -> None:
    headers = {"x-api-key": KEY}
    assert below.get(f"{prefix}/health/ready").status_code == 200
    assert below.post(f"{prefix}/v1/answers", json=BODY).status_code == 401
    assert below.post(f"{prefix}/v1/answers/", json=BODY, headers=headers).status_code == 200
    text = below.get(f"{prefix}/metrics", headers=headers).text
    assert 'refine_requests_total{endpoint="/v1/answers",status="401"} 1.0' in text


def test_a_path_that_only_begins_like_it_is_another(below: TestClient) -> None:
    headers = {"x-api-key": KEY}
    assert below.get("/refine/v2x/version", headers=headers).status_code == 404


def test_locations_and_the_document_have_the_path(below: TestClient) -> None:
    headers = {"x-api-key": KEY}
    body = {"document": "a b", "adapt": {"optimizer": {"steps": 1}}}
    made = below.post("/v1/adaptations", json=body, headers=headers)
    assert made.headers["location"] == f"/refine/v2/v1/adaptations/{made.json()['id']}"
    assert below.get(made.headers["location"], headers=headers).status_code == 200
    document = below.get("/openapi.json", headers=headers).json()
    assert document["servers"] == [{"url": "/refine/v2"}]
