"""Browsers, monitors and base URLs that end with a slash."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

ORIGIN = "https://app.example"
KEY = "alice-alice-alice-1"
STAINLESS = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)
"""What OpenAI's client for JavaScript sends from a browser."""


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(cors_origins=ORIGIN, api_keys=f"alice:{KEY}")


def preflight(client: TestClient, path: str, headers: str, **options: str) -> httpx.Response:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": headers,
    }
    renamed = {name.replace("_", "-"): value for name, value in options.items()}
    return client.options(path, headers={**asked, **renamed})


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/chat/completions", STAINLESS),
        ("/v1/completions", "authorization, content-type, openai-organization, openai-project"),
        ("/v1/answers", "x-api-key,x-request-id"),
        ("/v1/responses", STAINLESS),
        ("/v1/files", "authorization,x-stainless-lang,idempotency-key"),
        ("/v1/batches/batch_0/cancel", "authorization,openai-beta"),
        ("/v1/models", "authorization,http-referer,x-title,helicone-auth"),
        ("/v1/adaptations/x/events", "authorization,cache-control,last-event-id"),
    ],
)
def test_a_preflight_allows_the_headers_that_clients_send(
    client: TestClient, path: str, headers: str
) -> None:
    allowed = preflight(client, path, headers)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["access-control-allow-headers"] == headers
    assert "access-control-allow-credentials" not in allowed.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_a_preflight_allows_the_methods_of_the_api(client: TestClient, method: str) -> None:
    response = preflight(
        client, "/v1/models", "authorization", access_control_request_method=method
    )
    assert response.status_code == 200


def test_a_page_of_the_internet_may_call_a_server_in_the_own_network(client: TestClient) -> None:
    asked = {"access_control_request_private_network": "true"}
    response = preflight(client, "/v1/answers", "authorization", **asked)
    assert response.headers["access-control-allow-private-network"] == "true"


def test_a_preflight_of_another_origin_is_refused(client: TestClient) -> None:
    response = preflight(client, "/v1/answers", STAINLESS, origin="https://evil.example")
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": "a"}, 200),
        ({"prompt": 5}, 422),
        ({"prompt": "crash"}, 500),
        ({"prompt": "a", "model": "gpt-4"}, 404),
    ],
)
def test_a_page_can_read_every_response_and_what_to_do_about_it(
    client: TestClient, fake: Any, body: dict[str, Any], status: int
) -> None:
    fake.fail("crash")
    headers = {"origin": ORIGIN, "authorization": f"Bearer {KEY}"}
    response = client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == ORIGIN
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    own = {"traceparent", "x-refine-warning", "x-request-id"}
    assert exposed == {"location", "retry-after", "x-should-retry", *own}


def test_a_page_can_read_that_its_key_is_wrong(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"origin": ORIGIN})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, ORIGIN)


# -- HEAD -----------------------------------------------------------------------------------------

GETS = ["/health/live", "/health/ready", "/version", "/metrics", "/v1/models", "/v1/models/fake",
        "/v1/adaptations", "/v1/files", "/v1/batches", "/tokenizer_info", "/openapi.json",
        "/docs"]  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(live: Callable[..., str], path: str) -> None:
    url = live()
    with httpx.Client(base_url=url) as client:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert "content-length" in head.headers
        assert client.get(path).status_code == 200  # the connection is still in order


def test_head_of_what_is_not_there_or_cannot_be_got(live: Callable[..., str]) -> None:
    with httpx.Client(base_url=live()) as client:
        assert client.head("/nowhere").status_code == 404
        assert client.head("/v1/models/none").status_code == 404
        assert client.head("/v1/answers").status_code == 405
        assert client.head("/v1/adaptations/none/events").status_code == 404


def test_head_of_a_stream_ends_with_its_head(live: Callable[..., str], fake: Any) -> None:
    with httpx.Client(base_url=live()) as client:
        held = client.post("/v1/adaptations", json={"document": fake.hold("held")}).json()
        head = client.head(f"/v1/adaptations/{held['id']}/events", timeout=5)
        assert head.status_code == 200
        assert head.headers["content-type"].startswith("text/event-stream")
        fake.gate.set()


def test_head_is_counted_under_its_route(client: TestClient) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    client.head("/v1/models/fake", headers=headers)
    metrics = client.get("/metrics", headers=headers).text
    assert 'endpoint="/v1/models/{model}",status="200"' in metrics.replace(":path", "")


# -- slashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*GETS, "/v1/models/fake/", "/v1/models//", "/v1//models//fake"])
def test_a_slash_at_the_end_changes_nothing_of_a_get(client: TestClient, path: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    response = client.get(f"{path}/", headers=headers, follow_redirects=False)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": "a"}, 200),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 200),
        ("/v1/answers", {"document": "a", "query": "b"}, 200),
        ("/v1/adaptations", {"document": "a"}, 202),
        ("/v1/responses", {"input": "a"}, 200),
        ("/tokenize", {"prompt": "a"}, 200),
    ],
)
def test_a_slash_at_the_end_changes_nothing_of_a_post(
    client: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    response = client.post(f"{path}/", json=body, headers=headers, follow_redirects=False)
    assert response.status_code == status


def test_a_probe_with_a_slash_needs_no_key_either(client: TestClient) -> None:
    assert client.get("/health/live/").status_code == 200
    assert client.get("/v1/models/").status_code == 401
