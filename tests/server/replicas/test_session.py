"""Requests about one document have one session, whoever computes it."""

import json
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from refine_server.clients import session as of_client
from refine_server.server.adaptations.ids import ID_PATTERN, new_id, session_of_adaptation
from refine_server.server.replicas.session import session_of

CASES = json.loads((Path(__file__).parents[2] / "data" / "sessions.json").read_text())
DOCUMENT = "The keys are in the harbour."
ADAPTATION = "adapt-0123abcd" + "ef" * 12
KEY = {"authorization": "Bearer sk-1"}


def session(
    request: object, headers: dict[str, str] = KEY, path: str = "/v1/answers"
) -> str | None:
    return session_of(Headers(headers), path, json.dumps(request).encode())


@pytest.mark.parametrize("case", CASES)
def test_the_client_and_the_server_compute_the_same(case: dict[str, object]) -> None:
    """The TypeScript client's tests read the same file."""
    headers = {"authorization": f"Bearer {case['key']}"} if case["key"] else {}
    assert session(case["request"], headers) == case["session"]
    request = case["request"]
    assert isinstance(request, dict)
    assert of_client.session_of(headers.get("authorization"), request) == case["session"]


def test_questions_about_a_document_and_its_adaptation_have_one_session() -> None:
    of_document = session({"document": DOCUMENT})
    made = new_id(of_document)
    assert ID_PATTERN.fullmatch(made)
    assert session_of_adaptation(made) == of_document
    for request, path in (
        ({"adaptation": made, "query": "q"}, "/v1/answers"),
        ({"model": made, "messages": []}, "/v1/chat/completions"),
        ({"document": DOCUMENT}, "/v1/adaptations"),
        ({"ttt": {"document": DOCUMENT}, "messages": []}, "/v1/chat/completions"),
        ({}, f"/v1/adaptations/{made}"),
        ({}, f"/v1/adaptations/{made}/events"),
    ):
        assert session(request, path=path) == of_document, path


def test_owners_have_sessions_of_their_own() -> None:
    keys = [{}, {"authorization": "Bearer a"}, {"x-api-key": "b"}]
    assert len({session({"document": DOCUMENT}, headers) for headers in keys}) == 3
    bearer, header = {"authorization": "Bearer a"}, {"x-api-key": "a"}
    assert session({"document": DOCUMENT}, bearer) == session({"document": DOCUMENT}, header)


def test_files_go_where_they_were_uploaded() -> None:
    uploaded = session({}, path="/v1/files")
    assert uploaded is not None
    for path in ("/v1/documents", "/v1/documents/file-1", "/v1/files/file-1/content"):
        assert session({}, path=path) == uploaded, path
    attached = {"messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}
    named = {"input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}]}
    for request in ({"document": {"file_id": "file-1"}}, attached, named):
        assert session(request) == uploaded
    assert session({}, path="/v1/batches/batch_1") == uploaded


def test_a_file_within_a_message_is_a_document() -> None:
    def chat(data: str) -> dict[str, object]:
        return {"messages": [{"content": [{"type": "file", "file": {"file_data": data}}]}]}

    assert session(chat("QQ==")) == session(chat("QQ==")) != session(chat("Qg=="))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"\xff", b'{"document": 7, "messages": [3, {"content": [null]}]}', b"{}"],
)
def test_a_request_without_a_document_may_go_anywhere(body: bytes) -> None:
    assert session_of(Headers({}), "/v1/chat/completions", body) is None


def test_what_the_client_says_is_believed() -> None:
    assert session({"document": DOCUMENT}, {"x-session-id": "mine"}) == "mine"
    assert ID_PATTERN.fullmatch(new_id("mine"))
