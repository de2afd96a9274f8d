"""``bench fuzz``: its inputs have what it promises, and a server error among them is found."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, find, settings

from refine_server.benchmarks.robustness.fuzz.bench import Fuzzer
from refine_server.benchmarks.robustness.fuzz.inputs import Request, contract_requests, raw_bodies
from refine_server.benchmarks.robustness.fuzz.values import changed, paths

FINDING = settings(max_examples=4_000, suppress_health_check=list(HealthCheck), database=None)


@contextmanager
def replying(reply: bytes) -> Iterator[str]:
    """Run a server that gives every connection the same reply; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while connection.recv(65_536):
                        pass
                    connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.parametrize(
    ("reply", "failures"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 No\r\n\r\n", 0),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", 7),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 7),
        (b'HTTP/1.1 504 Gateway Timeout\r\n\r\n{"error": {"code": "timeout"}}', 0),
        (b"", 0),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error":{"type":"internal_error"}}', 7),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"code": "internal_error"}}', 7),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"code": "timeout"}}', 0),
    ],
)
def test_a_server_error_is_counted_and_kept(reply: bytes, failures: int) -> None:
    with replying(reply) as url:
        fuzzer = Fuzzer(url)
        fuzzer.run("contract", 7, 0)
    figures = fuzzer.outcome.figures()
    assert (figures["inputs"], figures["errors_5xx"]) == (7, failures)
    assert all(data.startswith(b"POST /") for _, data in fuzzer.outcome.failures)


@pytest.mark.parametrize(
    "part",
    [b"\\ud83d", b"\xed\xa0\xbd", b"\\udcff", b"e-320", b"1e+300", b"Infinity", b": null",
     b"2147483648", b"<|im_start|>", b"a" * 40_000],
)  # fmt: skip
def test_what_breaks_servers_is_among_the_inputs(part: bytes) -> None:
    assert part in find(contract_requests(), lambda r: part in r.body, settings=FINDING).body


def test_a_server_error_in_the_outputs_of_a_batch_is_found() -> None:
    resource = b'{"id": "x", "status": "completed", "error_file_id": "f", "a": "internal_error"}'
    failed = resource.replace(b'"a"', b'"code"')
    for reply, failures in ((resource, 0), (failed, 3)):
        with replying(b"HTTP/1.1 200 OK\r\n\r\n" + reply) as url:
            fuzzer = Fuzzer(url)
            fuzzer.run("batches", 3, 0)
        assert len(fuzzer.outcome.failures) == failures


@pytest.mark.parametrize("part", [b"content-encoding: gzip", b"\xff/\xfe", b"[[[[["])
def test_damaged_bodies_are_among_the_inputs(part: bytes) -> None:
    assert find(raw_bodies(), lambda r: part in r.data, settings=FINDING)


def test_a_change_can_reach_every_place_of_a_body() -> None:
    body = {"prompt": ["a", {"b": 1}]}
    before = json.dumps(body)
    for place in paths(body):
        *above, name = place

        def is_null(value: Any, above: Any = above, name: Any = name) -> bool:
            try:
                for part in above:
                    value = value[part]
                return value[name] is None
            except (KeyError, IndexError, TypeError):
                return False

        assert find(changed(body), is_null, settings=FINDING)
    assert json.dumps(body) == before


def test_a_request_is_written_as_http() -> None:
    request = Request(method=b"POST", target=b"/x", headers=((b"a", b"b"),), body=b"{}")
    assert request.data == b"POST /x HTTP/1.1\r\nhost: x\r\na: b\r\ncontent-length: 2\r\n\r\n{}"
