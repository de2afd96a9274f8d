"""Send inputs for a while, count them, and keep those that a server answered with an error."""

import logging
import socket
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, Phase, given, seed, settings

from refine_server.benchmarks.robustness.fuzz.inputs import REQUESTS, Request
from refine_server.benchmarks.robustness.reliability.process import ServerProcess

logger = logging.getLogger(__name__)

ROUND = 200
"""Inputs that are drawn before the clock is looked at again."""
REPLY_SECONDS = 20.0
"""Time for a reply; a server that takes longer has failed."""
LOST = 599
"""Status of an input that got no reply in time."""
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
    failures: list[tuple[int, bytes]] = field(default_factory=list)
    """Status and first bytes of the inputs that caused a server error, or got no reply."""

    def figures(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "inputs": sum(self.inputs.values()),
            "by_kind": dict(sorted(self.inputs.items())),
            "by_status": dict(sorted(self.statuses.items())),
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

    def run(self, kind: str, inputs: int, first_seed: int) -> None:
        """Send a number of inputs of one kind."""

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

    def _send(self, kind: str, request: Request) -> None:
        status, reply = self._exchange(request.data)
        self.outcome.inputs[kind] += 1
        self.outcome.statuses[str(status or "closed")] += 1
        if status >= 500 and not _is_time_limit(status, reply, request):
            self.outcome.failures.append((status, request.data[:2_000]))
            logger.error("%s: %r -> %r", status, request.data[:500], reply[:500])

    def _exchange(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes and return the reply with its status; 0 if there is none."""
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
                for kind in REQUESTS:
                    fuzzer.run(kind, ROUND, first_seed + rounds)
                rounds += 1
        finally:
            status = server.stop()
    return {**fuzzer.outcome.figures(), "exit_status": status}
