"""Send inputs for a while, count them, and keep those that a server answered with an error."""

import json
import logging
import re
import socket
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, Phase, given, seed, settings

from refine_server.benchmarks.robustness.fuzz.inputs import (
    BATCH_FILE,
    BODIES,
    DOCUMENT,
    REQUESTS,
    TEXT_FILE,
    Request,
    get,
    post,
    upload,
)
from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.server.api.batch_requests import ENDPOINTS

logger = logging.getLogger(__name__)

ROUTES = {*dict(BODIES), "/v1/files"}
"""Paths of routes that are sent bodies."""
ROUND = dict.fromkeys(REQUESTS, 200) | {"batches": 20}
"""Inputs of each kind that are drawn before the clock is looked at again. A batch takes as long as
several requests."""
REPLY_SECONDS = 20.0
"""Time for a reply; a server that takes longer has failed."""
LOST = 599
"""Status of an input that got no reply in time."""
INTERNAL = re.compile(rb'"(type|code)": ?"internal_error"')
"""What an error says that came after the status was sent: in a stream, or in a batch's outputs."""
ENDED = ("completed", "failed", "expired", "cancelled")
"""Statuses of a batch that has ended."""
BATCH_SECONDS = 120.0
"""Time for a batch, whose requests may each take until their time limit."""
LIMITS: dict[str, object] = {
    "max_tokens": 8,
    "request_timeout_seconds": 5,
    "client_timeout_seconds": 2,
    "store": "none",
}
"""Options of the server under test: requests that are valid but expensive end early."""


@dataclass
class Outcome:
    """What was sent, and how it was answered."""

    inputs: Counter[str] = field(default_factory=Counter)
    """Inputs by kind."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Replies by status; "closed" for a connection that was closed without one."""
    accepted: Counter[str] = field(default_factory=Counter)
    """Inputs that were answered with success, by the path of their route."""
    failures: list[tuple[int, bytes]] = field(default_factory=list)
    """Status and first bytes of the inputs that caused a server error, or got no reply."""

    def figures(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "inputs": sum(self.inputs.values()),
            "by_kind": dict(sorted(self.inputs.items())),
            "by_status": dict(sorted(self.statuses.items())),
            "accepted_by_route": dict(sorted(self.accepted.items())),
            "errors_5xx": len(self.failures),
            "first_error": next((f"{code} for {data!r}" for code, data in self.failures), None),
        }


class Fuzzer:
    """Sends inputs to a server, one after the other.

    Args:
        url: URL of the server.
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._address = (address.hostname, address.port)
        self.outcome = Outcome()
        self._ids: dict[bytes, bytes] = {}
        """Ids of files by what stands for them in the inputs."""

    def run(self, kind: str, inputs: int, first_seed: int) -> None:
        """Send a number of inputs of one kind."""
        self._upload()

        @seed(first_seed)
        @settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(REQUESTS[kind]())
        def send(request: Request) -> None:
            self._send(kind, request)

        send()

    def _upload(self) -> None:
        """Upload the files that inputs name; inputs may have deleted those of before."""
        body = {"prompt": "a", "max_tokens": 1}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
        contents = {
            TEXT_FILE: (DOCUMENT.encode(), "user_data"),
            BATCH_FILE: (json.dumps(line).encode(), "batch"),
        }
        for placeholder, (content, purpose) in contents.items():
            _, reply = self._exchange(upload(content, purpose).data)
            if (file := _resource(reply)) is not None:
                self._ids[placeholder.encode()] = file["id"].encode()

    def _send(self, kind: str, request: Request) -> None:
        status, reply = self._exchange(request.data)
        if kind == "batches" and (file := _resource(reply)) is not None:
            reply = self._answer_batch(file["id"])
        if INTERNAL.search(reply):
            status = 500
        self.outcome.inputs[kind] += 1
        self.outcome.statuses[str(status or "closed")] += 1
        if (path := request.target.decode("latin-1")) in ROUTES and 200 <= status < 300:
            self.outcome.accepted[path] += 1
        if status >= 500 and not _is_time_limit(status, reply, request):
            self.outcome.failures.append((status, request.data[:2_000]))
            logger.error("%s: %r -> %r", status, request.data[:500], reply[:500])

    def _answer_batch(self, file_id: str) -> bytes:
        """Run the batch of a file; return what its requests were answered and its own end."""
        # Each endpoint refuses the lines of the others.
        replies = b""
        for endpoint in ENDPOINTS:
            body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
            _, reply = self._exchange(post("/v1/batches", body).data)
            batch, end = _resource(reply), time.monotonic() + BATCH_SECONDS
            while batch is not None and batch["status"] not in ENDED:
                if time.monotonic() > end:
                    return replies + b'"code": "internal_error", the batch does not end: ' + reply
                time.sleep(0.02)
                _, reply = self._exchange(get(f"/v1/batches/{batch['id']}").data)
                batch = _resource(reply)
            replies += reply
            if batch is not None and batch["error_file_id"] is not None:
                path = f"/v1/files/{batch['error_file_id']}/content"
                replies += self._exchange(get(path).data)[1]
        return replies

    def _exchange(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes and return the reply with its status; 0 if there is none."""
        for placeholder, file_id in self._ids.items():
            data = data.replace(placeholder, file_id)
        reply = b""
        with socket.create_connection(self._address, timeout=REPLY_SECONDS) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65_536):
                    reply += piece
            except ConnectionError:  # it was refused while it was still being sent
                pass
            except TimeoutError:
                return LOST, reply
        while reply.startswith(b"HTTP/1.1 100 "):
            reply = reply.partition(b"\r\n\r\n")[2]
        return (int(reply[9:12]) if reply else 0), reply


def _resource(reply: bytes) -> dict[str, Any] | None:
    """Return the resource in a reply, None if it has none."""
    try:
        value = json.loads(reply.partition(b"\r\n\r\n")[2])
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("id"), str) else None


def _is_time_limit(status: int, reply: bytes, request: Request) -> bool:
    """Return whether the error is the time limit of the server or of the request, as documented."""
    if status != 504:
        return False
    return request.sets_timeout or b'"code": "timeout"' in reply


def fuzz(model: str, seconds: float, first_seed: int) -> dict[str, Any]:
    """Start a server, send it inputs of all kinds for a time, and return the counts."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess({**LIMITS, "model": model}, {}, Path(folder) / "server.log")
        server.start()
        fuzzer, end, rounds = Fuzzer(server.url), time.monotonic() + seconds, 0
        try:
            while time.monotonic() < end:
                for kind, inputs in ROUND.items():
                    fuzzer.run(kind, inputs, first_seed + rounds)
                rounds += 1
        finally:
            status = server.stop()
    return {**fuzzer.outcome.figures(), "exit_status": status}
