"""``refine-server serve`` as a process: signals, ports in use, missing models."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from refine_server.clients import ClientError, RefineClient
from refine_server.clients.types import Answer, StepMade
from refine_server.server.access.keys import new_key
from refine_server.server.process import StartError, listen_on_path, serve
from refine_server.server.settings import Settings
from support.live_server import wait_for
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


SOCKET_SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from refine_server.server import process
from refine_server.server.settings import Settings
from support.fake_backend import FakeBackend

process.create_app = partial(process.create_app, open_backend=FakeBackend().open)
folder = Path(sys.argv[1])
process.serve(Settings(
    model="fake", store="none", unix_socket=folder / "server.sock",
    api_keys_file=folder / "keys.toml", shutdown_seconds=0.3,
))
"""


def test_a_server_on_a_socket_reads_its_keys_again_on_sighup(tmp_path: Path) -> None:
    file, path = tmp_path / "keys.toml", tmp_path / "server.sock"
    (old, old_entry), (new, new_entry) = new_key("old"), new_key("new")
    file.write_text(old_entry.toml())
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))  # as a server that was killed leaves it
    command = [sys.executable, "-P", "-c", SOCKET_SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, env=environment())
    client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server")

    def status(key: str) -> int:
        try:
            return client.get("/v1/models", headers={"x-api-key": key}).status_code
        except httpx.TransportError:
            return 0

    try:
        wait_for(lambda: status(old) == 200, 60)
        with pytest.raises(StartError, match="another server does"):
            listen_on_path(path)
        file.write_text(new_entry.toml())
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: status(new) == 200, 30)
        assert status(old) == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_a_socket_that_cannot_be_made_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--unix-socket.*No such file"):
        listen_on_path(tmp_path / "none" / "server.sock")
