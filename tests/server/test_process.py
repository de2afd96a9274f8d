"""``refine-server serve`` as a process: signals, ports in use, missing models."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from refine_server.clients import ClientError, RefineClient
from refine_server.clients.types import Answer, StepMade
from refine_server.server.process import StartError, serve
from refine_server.server.settings import Settings
from support.processes import environment

SCRIPT = """
import sys, time
from functools import partial
from refine_server.server import process
from refine_server.server.settings import Settings
from support.fake_backend import FakeBackend, Script

fake = FakeBackend()
fake.slow_down("slow")
fake.script("endless", Script(step=lambda: time.sleep(1.5)))
process.create_app = partial(process.create_app, open_backend=fake.open)
process.serve(Settings(model="fake", port=int(sys.argv[1]), shutdown_seconds=1.0))
"""


@pytest.fixture
def process() -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Start a server with a scripted model; yield the process and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-c", SCRIPT, str(port)]
    process = subprocess.Popen(command, env=environment())
    try:
        url = f"http://127.0.0.1:{port}"
        for waited in RefineClient(url).wait_until_ready():
            assert process.poll() is None
            assert waited < 30
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_sigterm_lets_running_requests_end_first(
    process: tuple["subprocess.Popen[bytes]", str],
) -> None:
    server, url = process
    events = RefineClient(url).stream_answer(
        "who", document="slow", adapt={"optimizer": {"steps": 25}}
    )
    next(event for event in events if isinstance(event, StepMade))
    server.send_signal(signal.SIGTERM)
    assert [event.name for event in events][-1] == "answer.completed"
    assert server.wait(10) == 0


def test_sigterm_ends_long_adaptations_early_and_answers(
    process: tuple["subprocess.Popen[bytes]", str],
) -> None:
    server, url = process
    events = RefineClient(url).stream_answer(
        "who", document="slow", adapt={"optimizer": {"steps": 250}}
    )
    next(event for event in events if isinstance(event, StepMade))
    server.send_signal(signal.SIGTERM)
    *_, answer = events
    assert isinstance(answer, Answer)
    assert answer.adaptation_report.stopped == "shutdown"
    assert server.wait(10) == 0


def test_sigterm_gives_streams_that_do_not_end_in_time_a_final_error_event(
    process: tuple["subprocess.Popen[bytes]", str],
) -> None:
    server, url = process
    events = RefineClient(url).stream_answer(
        "who", document="endless", adapt={"optimizer": {"steps": 2}}
    )
    next(event for event in events if isinstance(event, StepMade))
    server.send_signal(signal.SIGTERM)
    with pytest.raises(ClientError) as stopped:
        list(events)
    assert stopped.value.code == "shutting_down"
    assert server.wait(10) == 0


def test_a_port_in_use_is_reported_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: Address already in use"):
            serve(Settings(port=port))


def test_a_model_that_is_not_there_ends_the_process() -> None:
    command = [sys.executable, "-P", "-m", "refine_server.server.cli.main", "serve", "--port", "0"]
    ended = subprocess.run(
        [*command, "--model", "no-such-model"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    assert ended.returncode == 1
    assert "cannot serve no-such-model" in ended.stderr
    assert "Traceback" not in ended.stderr
