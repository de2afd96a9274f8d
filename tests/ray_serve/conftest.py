"""Two replicas behind Ray Serve, started once, by the command line."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from refine_server.server.cli.commands.demo import running_server

START_SECONDS = 400.0
STOP_SECONDS = 60.0


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tmp_path_factory.mktemp("store").as_uri()


@pytest.fixture(scope="session")
def url(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run ``serve --replicas 2`` with the tiny model; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "refine_server.server.cli.main", "serve", "--model", "tiny"]
    options = ["--replicas", "2", "--port", str(port), "--store", store, "--max-queue", "64"]
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Autoscaling sees the queue after a second, not after ten.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options], stderr=output, stdout=output, env=environment
        )
    try:
        _wait_until_ready(process, log)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0, log.read_text()
    finally:
        process.kill()


@pytest.fixture(scope="session")
def one_process() -> Iterator[str]:
    """Run one server without Ray; yield its URL."""
    with running_server("tiny") as url:
        yield url


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=300.0) as client:
        yield client


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> None:
    waiting = threading.Event()
    for _ in range(int(START_SECONDS / 0.5)):
        if "ready: http" in log.read_text():
            return
        assert process.poll() is None, log.read_text()
        waiting.wait(0.5)
    raise AssertionError(log.read_text())
