"""Routes of OpenAI's API that are not served: clients are told the reason."""

import pytest
from starlette.testclient import TestClient

from refine_server.server.api.openai.compatibility import NO_EMBEDDINGS, NOT_KEPT, ONLY_TEXT

ASKED = [
    ("POST", "/v1/embeddings", NO_EMBEDDINGS),
    ("GET", "/v1/responses/resp_1", NOT_KEPT),
    ("DELETE", "/v1/responses/resp_1", NOT_KEPT),
    ("GET", "/v1/responses/resp_1/input_items", NOT_KEPT),
    ("POST", "/v1/responses/resp_1/cancel", NOT_KEPT),
    ("POST", "/v1/responses/input_tokens", "/tokenize"),
    ("POST", "/v1/conversations", NOT_KEPT),
    ("GET", "/v1/threads/t/messages", NOT_KEPT),
    ("POST", "/v1/audio/transcriptions", ONLY_TEXT),
    ("POST", "/v1/images/generations/", ONLY_TEXT),
    ("POST", "/v1/fine_tuning/jobs", "/v1/adaptations"),
    ("GET", "/v1/vector_stores/v/files", "ttt.document"),
    ("POST", "/v1/uploads", "/v1/files"),
]


@pytest.mark.parametrize(("method", "path", "reason"), ASKED)
def test_a_route_is_refused_with_the_reason(
    client: TestClient, method: str, path: str, reason: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 404
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert error["code"] == "not_supported"
    assert error["message"].startswith(f"{path.rstrip('/')} is not supported by this server: ")
    assert reason in error["message"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/embeddingsx", "/v2/embeddings"])
def test_any_other_path_is_not_found(client: TestClient, path: str) -> None:
    assert client.post(path, json={}).json()["error"]["code"] == "not_found"
