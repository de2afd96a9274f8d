"""What traces cost: the same requests without OpenTelemetry's SDK, with it but off, and traced."""

import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import override

from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.clients import RefineClient
from refine_server.clients.options import AdaptOptions

ABSENT, OFF, ON = "absent", "off", "on"
WAYS = ABSENT, OFF, ON
"""The SDK cannot be imported; it can, and no variable asks for traces; all requests are traced."""
HIDE_SDK = 'import sys\nsys.modules["opentelemetry.sdk"] = None\n'
"""Runs before the server, as sitecustomize.py."""
DOCUMENT = "The harbour master wrote down which boats came in, and which did not. " * 8
QUERY = "What did he write down?"
ADAPT: AdaptOptions = {"optimizer": {"steps": 2}, "guard": "none"}
MAX_TOKENS = 16
WARM_UP = 5


def compare(model: str, requests: int, rounds: int) -> dict[str, Any]:
    """Return the CPU seconds of a request each way, and the ratios to the first way by round.

    CPU seconds of the server's process depend less than time on what else the machine does. The
    ways take turns, so that a machine whose speed changes slows all of them down.

    Args:
        model: the model to serve.
        requests: requests in a row, for each way and round.
        rounds: how often each way has its turn.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sink = stack.enter_context(_sink())
        servers = {way: stack.enter_context(_server(way, model, sink, folder)) for way in WAYS}
        for server in servers.values():
            _cpu_seconds(server, min(WARM_UP, requests))
        seconds = [
            {way: _cpu_seconds(server, requests) for way, server in servers.items()}
            for _ in range(rounds)
        ]
    result: dict[str, Any] = {"model": model, "requests": requests, "rounds": rounds}
    for way in WAYS:
        result[f"{way}_cpu_seconds"] = statistics.median(of[way] for of in seconds)
    for way in (OFF, ON):
        ratios = sorted(of[way] / of[ABSENT] for of in seconds)
        result[f"{way}_ratio"] = statistics.median(ratios)
        result[f"{way}_ratio_range"] = [ratios[0], ratios[-1]]
    return result


def _cpu_seconds(server: ServerProcess, requests: int) -> float:
    """Return the CPU seconds of an answer from adapted weights, on average of some in a row."""
    process = psutil.Process(server.pid)
    began = process.cpu_times()
    with RefineClient(server.url, attempts=1) as client:
        for number in range(requests):
            adapt: AdaptOptions = {**ADAPT, "seed": number}
            client.answer(QUERY, document=DOCUMENT, adapt=adapt, max_tokens=MAX_TOKENS)
    ended = process.cpu_times()
    taken: float = ended.user + ended.system - began.user - began.system
    return taken / requests


@contextmanager
def _server(way: str, model: str, sink: str, folder: Path) -> Iterator[ServerProcess]:
    environment = {}
    if way == ABSENT:
        hidden = folder / "hidden"
        hidden.mkdir()
        (hidden / "sitecustomize.py").write_text(HIDE_SDK)
        paths = [str(hidden), os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    elif way == ON:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink}
    options: dict[str, object] = {"model": model, "store": "none"}
    server = ServerProcess(options, environment, folder / f"{way}.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def _sink() -> Iterator[str]:
    """Run what takes spans and forgets them; yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Sink(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Read the body and answer with 200."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass
