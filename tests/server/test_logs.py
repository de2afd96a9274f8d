"""The log: one line a request, as text or JSON, with what was done and without what was said."""

import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from refine_server.server import logs
from support.fake_backend import FakeBackend
from support.live_server import wait_for

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 2}}}
DOCUMENT = "secretword and more"


def lines_of(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    """Return the fields of the log's lines with a message."""
    return [vars(record) for record in caplog.records if record.getMessage() == message]


def test_an_answer_is_one_line_with_tokens_seconds_and_what_answered(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = make_client(api_keys="alice:alice-alice-alice-1")
    headers = {"authorization": "Bearer alice-alice-alice-1", "x-request-id": "r-1"}
    client.post("/v1/answers", json=BODY, headers=headers)
    [line] = lines_of(caplog, "POST /v1/answers 200")
    assert (line["key"], line["request_id"], line["status"]) == ("alice", "r-1", 200)
    assert (line["model"], line["answered_by"]) == ("fake", "adapted")
    assert line["answer_tokens"] == 3
    assert line["document_tokens"] > 0
    for phase in ("queue", "read", "adapt", "decode"):
        assert line[f"{phase}_seconds"] >= 0.0
    assert line["client"] == "testclient"


def test_a_kept_adaptation_is_named_in_the_lines_of_its_requests(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = client.post("/v1/adaptations", json={"document": "a b", "adapt": {}}).json()["id"]
    client.get(f"/v1/adaptations/{made}/events")
    client.post("/v1/answers", json={"adaptation": made, "query": "who"})
    chat = {"model": made, "messages": [{"role": "user", "content": "who"}]}
    client.post("/v1/chat/completions", json=chat)
    named = [
        vars(r).get("adaptation")
        for r in caplog.records
        if r.name.startswith("refine_server") and "/v1/" in r.getMessage()
    ]
    assert named == [made] * 4
    [ended] = lines_of(caplog, f"adaptation {made} is ready")
    assert (ended["answered_by"], ended["key"]) == ("adapted", "local")
    assert ended["adapt_seconds"] >= 0.0


def test_probes_are_logged_at_debug(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="refine_server")
    for path in ("/health/live", "/health/ready", "/metrics"):
        client.get(path)
        [line] = lines_of(caplog, f"GET {path} 200")
        assert line["levelname"] == "DEBUG"


@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_up_is_499(
    live: Callable[..., str], fake: FakeBackend, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level("INFO")
    url = live()
    body = {**BODY, "document": fake.hold("held"), "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/answers", json=body, timeout=0.5)
    wait_for(lambda: bool(lines_of(caplog, "POST /v1/answers 499")))
    assert not lines_of(caplog, "POST /v1/answers 200")


def test_a_client_that_leaves_after_the_last_event_has_not_hung_up(
    live: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    url = live()
    with (
        httpx.Client() as client,
        client.stream("POST", f"{url}/v1/answers", json={**BODY, "stream": True}) as response,
    ):
        assert any("answer.completed" in line for line in response.iter_lines())
    wait_for(lambda: bool(lines_of(caplog, "POST /v1/answers 200")))


@pytest.mark.parametrize(
    ("options", "address"),
    [({}, "127.0.0.1"), ({"trusted_proxies": "127.0.0.0/8"}, "203.0.113.7")],
)
def test_only_a_trusted_proxy_tells_the_clients_address(
    live: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, str],
    address: str,
) -> None:
    caplog.set_level("INFO")
    httpx.get(f"{live(**options)}/version", headers={"x-forwarded-for": "203.0.113.7"})
    wait_for(lambda: bool(lines_of(caplog, "GET /version 200")))
    [line] = lines_of(caplog, "GET /version 200")
    assert line["client"] == address


def test_texts_and_keys_are_in_no_field(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client = make_client(api_keys="alice:alice-alice-alice-1")
    headers = {"authorization": "Bearer alice-alice-alice-1"}
    client.post("/v1/answers", json={**BODY, "document": DOCUMENT}, headers=headers)
    told = "".join(logs.json_formatter().format(record) for record in caplog.records)
    assert "secretword" not in told
    assert "alice-alice" not in told


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes one line in a form and returns it."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def write(log_format: Any) -> str:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        root.handlers.clear()
        logs.configure("info", log_format)
        logging.getLogger("refine_server.x").info("GET / %s", 200, extra={"key": "alice"})
        return stream.getvalue()

    return write


def test_json_is_one_object_a_line(written: Callable[[str], str]) -> None:
    line = written("json")
    told = json.loads(line)
    assert line.count("\n") == 1
    assert told.pop("time").startswith("20")
    assert told == {
        "level": "INFO",
        "logger": "refine_server.x",
        "message": "GET / 200",
        "key": "alice",
    }


def test_text_has_the_fields_behind_the_message(written: Callable[[str], str]) -> None:
    assert written("text").endswith("INFO refine_server.x: GET / 200 key=alice\n")


def test_what_is_no_terminal_gets_json(written: Callable[[str], str]) -> None:
    assert json.loads(written("auto"))["key"] == "alice"
