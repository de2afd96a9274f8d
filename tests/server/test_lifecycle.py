"""When a server process ends: with its engine or by a signal, but not by a request's failure."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.clients import ClientError, RefineClient, sse
from refine_server.clients.types import StepMade
from refine_server.server.process import serve
from refine_server.server.settings import Settings, SettingsError
from support.processes import environment

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 1}}}
SLOW = {"document": "slow", "query": "who", "adapt": {"optimizer": {"steps": 25}}}

SCRIPT = """
import json, sys
from functools import partial
from refine_server.server import process
from refine_server.server.settings import Settings
from support.fake_backend import FakeBackend

fake = FakeBackend()
fake.gate.wait = lambda seconds: __import__("time").sleep(600)
fake.hold("held")
fake.slow_down("slow")
fake.fail("exit", SystemExit())
if "changes" in sys.argv:
    fake.verify = lambda: False
process.create_app = partial(process.create_app, open_backend=fake.open)
process.serve(Settings(model="fake", port=0, store="none", **json.loads(sys.argv[1])))
"""

Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a server with a scripted model: its process and URL."""
    with ExitStack() as stack:

        def start(options: str = "{}", *extra: str) -> tuple["subprocess.Popen[str]", str]:
            command = [sys.executable, "-P", "-c", SCRIPT, options, *extra]
            process = stack.enter_context(
                subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
            )
            stack.callback(process.kill)
            assert process.stderr is not None
            url = ""
            for line in process.stderr:
                if "listening on" in line:
                    url = line.split("listening on ")[1].split(",")[0]
                if "ready:" in line:
                    break
            assert url
            return process, url

        yield start


def stream_answer(url: str, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of a stream's events, and the code of an error."""
    asked = {**body, "stream": True}
    with httpx.stream("POST", f"{url}/v1/answers", json=asked, timeout=60) as reply:
        for event in sse.parse(reply.iter_bytes()):
            yield event.event, json.loads(event.data).get("error", {}).get("code", "")


def rest_of_log(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    return process.stderr.read()


@pytest.mark.parametrize(
    ("document", "options", "code"),
    [
        ("exit", "{}", "engine_dead"),
        ("held", '{"stall_seconds": 0.5, "shutdown_seconds": 1}', "engine_stalled"),
    ],
)
def test_the_process_ends_with_its_engine(
    start: Start, document: str, options: str, code: str
) -> None:
    process, url = start(options)
    with pytest.raises(ClientError) as failure:
        list(RefineClient(url).stream_answer(**{**BODY, "document": document}))
    assert failure.value.code == code
    assert process.wait(10) == 1
    assert "the engine is dead or hangs" in rest_of_log(process)


def test_the_process_ends_when_the_base_weights_have_changed(start: Start) -> None:
    process, url = start("{}", "changes")
    reply = httpx.post(f"{url}/health/verify")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "isolation_violated")
    assert process.wait(10) == 1
    assert "isolation check failed" in rest_of_log(process)


def test_sigterm_refuses_new_requests_finishes_work_and_exits_with_0(start: Start) -> None:
    process, url = start('{"shutdown_seconds": 10}')
    events = RefineClient(url).stream_answer(**SLOW)
    next(event for event in events if isinstance(event, StepMade))
    process.send_signal(signal.SIGTERM)
    with httpx.Client() as client:

        def refused() -> bool:
            ready = client.get(f"{url}/health/ready")
            if ready.status_code == 200:
                return False
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "shutting_down")
            return True

        while not refused():
            pass
        newcomer = httpx.post(f"{url}/v1/answers", json=BODY)
        assert newcomer.status_code == 503
        assert int(newcomer.headers["retry-after"]) >= 1
        assert httpx.get(f"{url}/health/live").status_code == 200
    process.send_signal(signal.SIGTERM)  # twice is once
    assert [event.name for event in events][-1] == "answer.completed"
    assert process.wait(10) == 0


def test_sigterm_while_a_step_hangs(start: Start) -> None:
    process, url = start('{"shutdown_seconds": 0.5, "stall_seconds": 1}')
    codes: list[str | None] = []

    def ask() -> None:
        with pytest.raises(ClientError) as error:
            list(RefineClient(url).stream_answer(**{**BODY, "document": "held"}))
        codes.append(error.value.code)

    thread = threading.Thread(target=ask)
    thread.start()
    while "refine_queue_seconds_count 1.0" not in httpx.get(f"{url}/metrics").text:
        pass
    process.send_signal(signal.SIGTERM)
    thread.join(10)
    assert codes == ["shutting_down"]
    assert process.wait(20) == 1


def test_sigterm_ends_the_stream_of_an_adaptation_with_an_event(start: Start) -> None:
    process, url = start('{"shutdown_seconds": 1}')
    body = {"document": "slow", "adapt": {"optimizer": {"steps": 200}}}
    created = httpx.post(f"{url}/v1/adaptations", json=body).json()["id"]
    with httpx.stream("GET", f"{url}/v1/adaptations/{created}/events") as reply:
        events = sse.parse(reply.iter_bytes())
        assert any(event.event == "adaptation.step" for event in events)
        process.send_signal(signal.SIGTERM)
        *_, last = events
    assert last.event == "adaptation.ready"  # with the steps made so far
    assert '"stopped":"shutdown"' in last.data
    assert process.wait(10) == 0


def test_verify(client: TestClient, fake: Any) -> None:
    assert client.post("/health/verify").json() == {"status": "intact"}
    assert client.get("/health/verify").status_code == 405


def test_weights_that_changed_make_the_server_unready(client: TestClient, fake: Any) -> None:
    fake.is_intact = False
    assert client.post("/health/verify").json()["error"]["code"] == "isolation_violated"
    assert client.get("/health/ready").status_code == 503
    assert client.post("/v1/answers", json=BODY).status_code == 503
    assert "refine_isolation_violations_total 1.0" in client.get("/metrics").text


def test_a_failing_verification_leaves_no_request_waiting(
    client: TestClient, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> bool:
        raise OSError("device lost")

    monkeypatch.setattr(fake, "verify", broken)
    assert client.post("/health/verify").status_code == 500
    assert client.get("/health/ready").json()["error"]["code"] == "engine_dead"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
    ],
)
def test_out_of_memory_fails_that_request_alone(
    make_client: Callable[..., TestClient], fake: Any, error: Exception
) -> None:
    client = make_client()
    failed = client.post("/v1/answers", json={**BODY, "document": fake.fail("large", error)})
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "out_of_memory")
    assert int(failed.headers["retry-after"]) >= 1
    assert fake.closed == ["who"]
    assert client.post("/v1/answers", json=BODY).json()["answer"] == "who"
    assert client.get("/health/ready").status_code == 200


def test_a_bad_key_file_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        serve(Settings(port=0, api_keys_file=tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("gpu7", None, True),
        ("0.0.0.0", "alice:alice-alice-alice-1", False),
    ],
)
def test_an_open_server_that_others_can_reach_warns(
    make_app: Callable[..., FastAPI],
    caplog: pytest.LogCaptureFixture,
    host: str,
    keys: str | None,
    warns: bool,
) -> None:
    from refine_server.server.process import warn_if_unprotected

    warn_if_unprotected(make_app(api_keys=keys).state.keyring, host)
    assert ("no API keys" in caplog.text) == warns
