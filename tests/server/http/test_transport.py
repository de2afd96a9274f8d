"""Compressed bodies, clients that stop sending before they read, and how streams are written."""

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

JSON = {"content-type": "application/json"}
BODY = json.dumps({"prompt": "hello"}).encode()


def post(client: TestClient, content: bytes, encoding: str, **headers: str) -> httpx.Response:
    return client.post(
        "/v1/completions",
        content=content,
        headers={**JSON, "content-encoding": encoding, **headers},
    )


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY[:5]) + gzip.compress(BODY[5:])),
        ("gzip", gzip.compress(b" " * 300_000 + BODY)),
    ],
)
def test_a_compressed_body_is_unpacked(client: TestClient, encoding: str, content: bytes) -> None:
    response = post(client, content, encoding)
    assert response.status_code == 200
    assert response.json()["choices"][0]["text"] == "hello"


@pytest.mark.parametrize("pieces", [1, 7])
def test_it_may_arrive_in_pieces(client: TestClient, pieces: int) -> None:
    packed = gzip.compress(BODY)
    size = -(-len(packed) // pieces)

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(packed), size):
            yield packed[at : at + size]

    headers = {**JSON, "content-encoding": "gzip"}
    assert client.post("/v1/completions", content=chunks(), headers=headers).status_code == 200


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("pieces", [1, 7])
def test_deflate_may_lack_the_header_of_zlib(client: TestClient, level: int, pieces: int) -> None:
    """RFC 9110, section 8.4.1.2: some clients send the data alone."""
    packer = zlib.compressobj(level, wbits=-15)
    content = packer.compress(BODY) + packer.flush()
    parts = [content[i : i + pieces] for i in range(0, len(content), pieces)]
    headers = {"content-type": "application/json", "content-encoding": "deflate"}
    response = client.post("/v1/completions", content=iter(parts), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "nonsense", "\xe9"])
def test_another_encoding_is_415_with_those_that_are_known(
    client: TestClient, encoding: str
) -> None:
    headers = {**JSON, "content-encoding": encoding.encode("latin-1")}
    response = client.post("/v1/completions", content=BODY, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_encoding"
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "content",
    [b"", BODY, gzip.compress(BODY)[:-4], gzip.compress(BODY)[:8], gzip.compress(BODY) + b"rest"],
)
def test_a_body_that_is_not_whole_is_400(client: TestClient, content: bytes) -> None:
    response = post(client, content, "gzip")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_body")


def test_the_limit_is_on_what_is_unpacked(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_body_bytes=100_000)
    assert post(client, gzip.compress(BODY + b" " * 90_000), "gzip").status_code == 200
    for size in (100_000, 500_000_000):
        bomb = zlib.compressobj(9, wbits=31)
        content = b"".join(bomb.compress(b" " * 100_000) for _ in range(size // 100_000))
        content += bomb.compress(BODY) + bomb.flush()
        began = time.monotonic()
        response = post(client, content, "gzip")
        assert time.monotonic() - began < 1
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_the_structure_of_what_is_unpacked_is_limited_too(client: TestClient) -> None:
    response = post(client, gzip.compress(b"[" * 100_000), "gzip")
    assert response.status_code == 413


# -- half-closed connections ----------------------------------------------------------------------


@contextmanager
def sent(url: str, body: dict[str, Any], version: str = "1.1") -> Iterator[socket.socket]:
    """Send a request and then close that direction, as ``nc -N`` and some HTTP libraries do."""
    address, content = httpx.URL(url), json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}\r\n\r\n"
    with socket.create_connection((address.host, address.port or 0), timeout=10) as opened:
        opened.sendall(head.encode() + content)
        opened.shutdown(socket.SHUT_WR)
        yield opened


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def final(received: bytes) -> bytes:
    """Skip the interim responses, as a client must."""
    while received.startswith(b"HTTP/1.1 100 "):
        received = received.partition(b"\r\n\r\n")[2]
    return received


@pytest.mark.parametrize("prompt", ["hello", "slow"])
def test_a_client_that_has_only_stopped_sending_is_answered(
    live: Callable[..., str], fake: Any, prompt: str
) -> None:
    fake.slow_down("slow")
    with sent(live(), {"prompt": prompt}) as connection:
        received = final(read_all(connection))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == prompt


def test_its_stream_is_answered(live: Callable[..., str], fake: Any) -> None:
    with sent(live(), {"prompt": fake.slow_down("slow"), "stream": True}) as connection:
        assert b"data: [DONE]" in read_all(connection)


def test_its_work_may_take_longer_than_the_probes(live: Callable[..., str], fake: Any) -> None:
    with sent(live(), {"prompt": fake.hold("held")}) as connection:
        time.sleep(1.5)
        fake.gate.set()
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 100 Continue") == 3
    assert final(received).startswith(b"HTTP/1.1 200 ")


def test_an_error_reaches_it(live: Callable[..., str]) -> None:
    with sent(live(), {"prompt": 5}) as connection:
        assert final(read_all(connection)).startswith(b"HTTP/1.1 422 ")


def test_a_client_that_leaves_cancels_as_before(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    url = live()
    with sent(url, {"prompt": fake.hold("gone")}):
        wait_for(lambda: fake.turns == ["gone"])
    # The probe finds out, and the work ends before its next turn.
    wait_for(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    wait_for(lambda: "gone" in fake.closed)
    assert fake.turns == ["gone"]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n",
        b"",
    ],
)
def test_half_a_request_is_not_waited_for(live: Callable[..., str], head: bytes) -> None:
    address = httpx.URL(live())
    with socket.create_connection((address.host, address.port or 0), timeout=5) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/answers", {"document": "a\r\nb", "query": "who", "adapt": {"guard": "none"}}),
    ],
)
def test_lines_of_a_stream_end_in_lf(client: TestClient, path: str, body: dict[str, Any]) -> None:
    content = client.post(path, json={**body, "stream": True}).content
    assert b"\r" not in content
    assert content.count(b"\n\n") >= 3
    assert content.endswith(b"\n\n")


def test_lines_of_an_adaptations_stream_end_in_lf(client: TestClient, fake: Any) -> None:
    for document in ("a", fake.fail("crash")):
        created = client.post("/v1/adaptations", json={"document": document}).json()
        content = client.get(f"/v1/adaptations/{created['id']}/events").content
        assert b"\r" not in content
        assert content.endswith(b"\n\n")


def test_an_error_event_ends_in_lf(client: TestClient, fake: Any) -> None:
    body = {"prompt": fake.fail("crash"), "stream": True}
    content = client.post("/v1/completions", json=body).content
    assert b"\n\nevent: error\ndata: {" in content
    assert b"\r" not in content


# -- targets in absolute form ---------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "HTTP://example.org", "https://x"])
@pytest.mark.parametrize("path", ["/health/live", "//v1/models/", "/v1/models?a=b"])
def test_a_target_may_be_a_whole_url(live: Callable[..., str], origin: str, path: str) -> None:
    """RFC 9112, section 3.2.2: as clients send it that take the server for a proxy."""
    address = urlsplit(live())
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = f"GET {origin}{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode())
        reply = connection.recv(65_536)
    assert reply.split()[1] == b"200"
