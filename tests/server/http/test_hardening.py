"""Hostile requests: slow, large, deeply nested and malformed ones, and names of files."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from refine_server.server.http.connections import MAX_HEAD_BYTES
from refine_server.server.http.endpoints import Endpoints
from refine_server.server.http.middleware.request_context import RequestContext
from refine_server.server.http.middleware.security_headers import SECURITY_HEADERS
from refine_server.server.http.middleware.send_timeout import SendTimeout
from refine_server.server.metrics.declarations import Metrics

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 1}}}
KEY = "alice-alice-alice-1"


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/nowhere", "/docs"])
@pytest.mark.parametrize("options", [{}, {"api_keys": f"alice:{KEY}"}])
def test_every_response_has_the_security_headers(
    make_client: Callable[..., TestClient], path: str, options: dict[str, str]
) -> None:
    response = make_client(**options).get(path)
    for name, value in SECURITY_HEADERS.items():
        if (path, name) != ("/docs", "content-security-policy"):
            assert response.headers[name] == value
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert "server" not in response.headers


def test_other_origins_are_refused_unless_named(make_client: Callable[..., TestClient]) -> None:
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    shut = make_client()
    assert shut.options("/v1/answers", headers=preflight).status_code == 405
    reply = shut.post("/v1/answers", json=BODY, headers={"origin": "https://app.example"})
    assert not any(name.startswith("access-control") for name in reply.headers)

    named = make_client(
        cors_origins="https://app.example, https://b.example", api_keys=f"alice:{KEY}"
    )
    allowed = named.options("/v1/answers", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in allowed.headers
    refused = named.options("/v1/answers", headers={**preflight, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers
    without_key = named.post("/v1/answers", json=BODY, headers={"origin": "https://b.example"})
    assert without_key.status_code == 401


@contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as opened:
        yield opened


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


HEAD = b"POST /v1/answers HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_body_that_never_ends_is_408(live: Callable[..., str]) -> None:
    url = live(client_timeout_seconds=0.4)
    with connection(url) as slow:
        slow.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        began = time.monotonic()
        answered = read_all(slow)
        assert time.monotonic() - began < 5
    assert answered.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "body_too_slow"' in answered
    assert b"connection: close" in answered.lower()


def test_trickled_bytes_do_not_extend_the_timeout(live: Callable[..., str]) -> None:
    url = live(client_timeout_seconds=0.5)
    with connection(url) as slow:
        slow.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        began = time.monotonic()
        with suppress(OSError):  # reset, or a broken pipe
            while time.monotonic() - began < 5:
                slow.sendall(b"1\r\n{\r\n")
                time.sleep(0.05)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("served_before", [False, True])
def test_a_head_that_never_ends_is_cut_off(live: Callable[..., str], served_before: bool) -> None:
    url = live(client_timeout_seconds=0.4)
    with connection(url) as slow:
        if served_before:
            slow.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            answered = b""
            while not answered.endswith(b"}"):
                answered += slow.recv(65536)
        slow.sendall(b"GET /health/live HTTP/1.1\r\nx-a: b")
        began = time.monotonic()
        assert read_all(slow) == b""
        assert time.monotonic() - began < 3


def test_a_slow_answer_is_not_a_slow_client(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    url = live(client_timeout_seconds=0.2)
    body = {
        "document": fake.slow_down("slow"),
        "query": "who",
        "adapt": {"optimizer": {"steps": 25}},
    }
    with httpx.Client() as client:
        for _ in range(2):
            assert client.post(f"{url}/v1/answers", json=body).json()["answer"] == "who"


@pytest.mark.anyio
async def test_a_client_that_does_not_read_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    limited = RequestContext(SendTimeout(app, seconds=0.05), Metrics(), Endpoints([]))
    await limited(scope, send, send)  # type: ignore[arg-type]
    assert closed
    assert "its client does not read" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_head_over_the_limit_is_refused(live: Callable[..., str]) -> None:
    url = live()
    with connection(url) as large:
        large.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: " + b"b" * MAX_HEAD_BYTES)
        assert read_all(large).startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{url}/health/live").status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 30_000,
        b'{"document": ' + b"[" * 30_000 + b"]" * 30_000 + b', "query": "a"}',
        b'{"document": "a", "query": "b", "seed": ' + b"9" * 10_000 + b"}",
        b'{"document": "a", "query": "b", "temperature": 1e999}',
        b'{"document": "a", "query": "\\ud800"}',
        b'{"document": "a", "query": "b", "adapt": {"seed": NaN}}',
        b"\xff\xfe",
        b'{"a": 1' * 15_000,
    ],
)
def test_bodies_made_to_break_parsers_are_refused(client: TestClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/v1/answers", content=content, headers=headers)
    assert response.status_code in (400, 422)
    assert response.json()["error"]["code"]


THOUSANDS = 30_000
"""Nearly as many objects, arrays or fields as a body may have."""
UNKNOWN_FIELDS = ", ".join(f'"{number}": 1' for number in range(THOUSANDS))


def repeated(item: str) -> str:
    return "[" + ", ".join([item] * THOUSANDS) + "]"


@pytest.mark.parametrize(
    ("path", "content", "param"),
    [
        ("/v1/answers", f'{{{UNKNOWN_FIELDS}, "document": "a", "query": "b"}}', "0"),
        ("/v1/answers", f'{{"document": "a", "query": "b", "adapt": {{{UNKNOWN_FIELDS}}}}}',
         "adapt.0"),
        ("/v1/answers", f'{{"document": "a", "query": "b", "stop": {repeated("1")}}}', "stop"),
        ("/v1/adaptations", f'{{"document": "a", {UNKNOWN_FIELDS}}}', "0"),
        ("/v1/completions", f'{{"prompt": {repeated("[1]")}}}', "prompt"),
        ("/v1/completions", f'{{"prompt": {repeated("null")}}}', "prompt"),
        ("/v1/completions", f'{{"prompt": "a", {UNKNOWN_FIELDS}}}', "0"),
        ("/v1/chat/completions", f'{{"messages": {repeated("{}")}}}', "messages.0.role"),
        ("/v1/chat/completions",
         f'{{"messages": [{{"role": "user", "content": {repeated("{}")}}}]}}',
         "messages.0.content.0.type"),
        ("/tokenize", f'{{"messages": [{{"role": "user", {UNKNOWN_FIELDS}}}]}}',
         "messages.0.content"),
        ("/detokenize", f'{{"tokens": {repeated("-1")}}}', "tokens.0"),
    ],
)  # fmt: skip
def test_a_body_that_is_wrong_in_thousands_of_places_has_a_short_error(
    client: TestClient, path: str, content: str, param: str
) -> None:
    """Reporting every error would block the event loop for seconds."""
    headers = {"content-type": "application/json"}
    response = client.post(path, content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert len(response.content) < 4_000


@pytest.mark.parametrize(
    ("stop", "field"), [(["x"] * 17, "stop"), (["x" * 257], "stop.0"), ([""], "stop.0")]
)
def test_the_stop_list_is_bounded(client: TestClient, stop: list[str], field: str) -> None:
    response = client.post("/v1/answers", json={**BODY, "stop": stop})
    assert response.status_code == 422
    assert field in response.json()["error"]["message"]


MARK = "marked-by-the-test"
PATHS = [f"/etc/{MARK}", f"../../{MARK}", f"file:///{MARK}", f"~/{MARK}", f"{MARK}\\..\\{MARK}"]
touched: list[str] = []
watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event.split(".")[0] in ("open", "os", "shutil", "glob", "tempfile", "import"):
        touched.extend(str(argument) for argument in arguments if MARK in str(argument))


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """Record operations on files whose names contain the mark; an audit hook cannot be removed."""
    global watching
    sys.addaudithook(_hook)
    touched.clear()
    watching = True
    yield touched
    watching = False


def test_the_audit_hook_works(watched: list[str]) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        os.listdir(f"/{MARK}")
    assert watched


def test_no_name_in_a_request_reaches_the_file_system(
    make_client: Callable[..., TestClient], watched: list[str], tmp_path: Path
) -> None:
    client = make_client(store=tmp_path.as_uri())
    adapted = client.post(
        "/v1/adaptations", json={"document": MARK, "adapt": {"optimizer": {"steps": 1}}}
    )
    client.get(f"/v1/adaptations/{adapted.json()['id']}/events")
    assert list(tmp_path.rglob("manifest.json"))
    operations = client.get("/openapi.json").json()["paths"]
    for name in PATHS:
        quoted = name.replace("/", "%2F")
        for path in (f"/{name}", f"/{quoted}", f"/v1/models/{quoted}", f"/docs/{name}"):
            client.get(path, headers={"x-request-id": name, "authorization": f"Bearer {name}"})
        assert client.post("/v1/answers", json={**BODY, "model": name}).status_code == 404
        client.post("/v1/answers", json={**BODY, "document": name, "query": name, "stop": name})
        client.post(
            "/v1/answers",
            json={**BODY, "adapt": {"objective": name, "fast_weights": {"targets": name}}},
        )
        for path, methods in operations.items():
            for method in methods:
                filled = path.replace("{", "").replace("}", "") + f"?x={quoted}"
                filled = "/".join(quoted if "_id" in part else part for part in filled.split("/"))
                client.request(method, filled, json={"model": name, "document": name})
    assert watched == []
