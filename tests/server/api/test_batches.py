"""Batches over HTTP: requests in a file, their answers, and what ends them early."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.server.access.keys import new_key
from refine_server.server.batches import batch as batches
from refine_server.server.batches import registry
from support.fake_backend import FakeBackend
from support.live_server import wait_for

CHAT = "/v1/chat/completions"


def request(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    messages = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 3}
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body or messages}


def upload(client: Any, *lines: Any, purpose: str = "batch") -> str:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    files = {"file": ("in.jsonl", b"\n".join(texts))}
    response = client.post("/v1/files", files=files, data={"purpose": purpose})
    assert response.status_code == 200, response.text
    file_id: str = response.json()["id"]
    return file_id


def create(client: Any, *lines: Any, endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
    body = {"input_file_id": upload(client, *lines), "endpoint": endpoint}
    response = client.post("/v1/batches", json={**body, "completion_window": "24h", **fields})
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def wait(client: Any, batch_id: str, *statuses: str) -> dict[str, Any]:
    """Wait until a batch has one of the statuses, or has ended."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        batch: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
        if batch["status"] in (statuses or ("completed", "failed", "expired", "cancelled")):
            return batch
        time.sleep(0.03)
    raise AssertionError(batch)


def lines_of(client: Any, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = client.get(f"/v1/files/{file_id}/content").content
    return [json.loads(line) for line in content.splitlines()]


# -- answers --------------------------------------------------------------------------------------


def test_requests_are_answered_as_their_route_answers_them(tiny_url: str) -> None:
    document = "The castle animal is falcon. The harbour code is amber."
    bodies: dict[str, dict[str, Any]] = {
        "/v1/answers": {"document": document, "query": "What is the castle animal?"},
        "/v1/completions": {"prompt": "The harbour", "temperature": 0, "max_tokens": 3},
        CHAT: {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 3},
        "/v1/responses": {"input": "hello", "temperature": 0, "max_output_tokens": 3},
    }
    with httpx.Client(base_url=tiny_url, timeout=60) as client:
        for endpoint, body in bodies.items():
            alone = client.post(endpoint, json=body).json()
            lines = (request(n, endpoint, **body) for n in range(2))
            made = create(client, *lines, endpoint=endpoint, metadata={"a": "b"})
            batch = wait(client, made["id"])
            assert (batch["status"], batch["errors"], batch["error_file_id"]) == (
                "completed",
                None,
                None,
            )
            assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
            assert batch["metadata"] == {"a": "b"}
            told = lines_of(client, batch["output_file_id"])
            assert [line["custom_id"] for line in told] == ["r0", "r1"]
            for line in told:
                assert (line["error"], line["response"]["status_code"]) == (None, 200)
                answer = line["response"]["body"]
                for name in ("answer", "choices"):
                    assert answer.get(name) == alone.get(name)
                if "output" in alone:
                    content = [item["content"] for item in answer["output"]]
                    assert content == [item["content"] for item in alone["output"]]


def test_every_faulty_line_is_in_the_error_file_with_its_number(client: TestClient) -> None:
    good = request(1)
    batch = create(
        client,
        b"\xef\xbb\xbf" + json.dumps(good).encode(),
        b"{",
        b"",
        b"  ",
        b"[1]",
        {**request(2), "custom_id": "r1"},
        {**request(3), "url": "/v1/answers"},
        {**request(4), "method": "GET"},
        {**request(5), "colour": 1},
        request(6, messages="x"),
        request(7, messages=[{"role": "user", "content": "a"}], stream=True),
        json.dumps(request(8, prompt="\ud83d")).encode(),
        request(9, messages=None, model=None),
        request(10, messages=[{"role": "user", "content": "a"}], model="gpt-4"),
        request(11, messages=[{"role": "user", "content": "a"}], temperature=1e-320, top_k=5),
        {"custom_id": None, "method": "POST", "url": CHAT, "body": {}},
        {**request(12), "body": None},
        b"[" * 50_000,
    )
    ended = wait(client, batch["id"])
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 16, "completed": 1, "failed": 15}
    [answered] = lines_of(client, ended["output_file_id"])
    assert answered["custom_id"] == "r1"
    faults = lines_of(client, ended["error_file_id"])
    found = []
    for line in faults:
        if line["error"] is None:
            error = line["response"]["body"]["error"]
            found.append((line["line"], line["response"]["status_code"], error["param"]))
        else:
            assert line["response"] is None
            assert line["error"]["line"] == line["line"]
            found.append((line["line"], line["error"]["code"], line["error"]["param"]))
    # The one without a name has the name of a line that was answered.
    named = {line["line"]: line["custom_id"] for line in faults}
    assert named == {
        **{n: f"r{n - 4}" for n in range(7, 18)},
        **dict.fromkeys([2, 5, 6, 16, 18], None),
        17: "r12",
    }
    assert found == [
        (2, "invalid_json", None),
        (5, "invalid_body", None),
        (6, "invalid_value", "custom_id"),
        (7, "invalid_value", "url"),
        (8, "invalid_value", "method"),
        (9, "unknown_field", "colour"),
        (10, 422, "messages"),
        (11, 422, "stream"),
        (12, "invalid_value", "body.prompt"),
        (13, 422, "messages"),
        (14, 404, "model"),
        (15, 422, "top_k"),
        (16, "invalid_value", "custom_id"),
        (17, "invalid_value", "body"),
        (18, "body_too_large", None),
    ]


def test_a_batch_goes_on_when_its_client_leaves(
    live: Callable[..., str], fake: FakeBackend
) -> None:
    url = live()
    fake.hold("hello 0")
    with httpx.Client(base_url=url) as client:
        made = create(client, request(0), request(1))
    with httpx.Client(base_url=url) as client:
        assert wait(client, made["id"], "in_progress")["output_file_id"] is None
        fake.gate.set()
        assert wait(client, made["id"])["request_counts"]["completed"] == 2


def test_interactive_requests_do_not_wait_for_a_batch(
    live: Callable[..., str], fake: FakeBackend
) -> None:
    """However many requests a batch has, they leave a place free, and the queue empty."""
    fake.slow_down("hello")
    with httpx.Client(base_url=live(max_active=2, max_queue=2, max_batch_requests=8)) as client:
        made = create(client, *(request(n) for n in range(20)))
        wait(client, made["id"], "in_progress")
        for _ in range(3):
            body = {"prompt": "now", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 200
        assert client.get(f"/v1/batches/{made['id']}").json()["status"] == "in_progress"
        assert wait(client, made["id"])["request_counts"]["completed"] == 20


def test_requests_of_a_batch_have_the_lowest_priority(
    make_app: Callable[..., FastAPI], fake: FakeBackend
) -> None:
    app = make_app()
    fake.hold("hello")
    with TestClient(app) as client:
        app.state.engine.opened.result(10)
        end = time.monotonic() + 10
        while not app.state.batches.is_open and time.monotonic() < end:
            time.sleep(0.01)
        body = {"document": "hello", "query": "q", "priority": -10}
        create(client, request(0, "/v1/answers", **body), endpoint="/v1/answers")
        while not app.state.engine._queue.jobs and time.monotonic() < end:
            time.sleep(0.01)
        assert [job.priority for job in app.state.engine._queue.jobs] == [10]
        fake.gate.set()


# -- ends -----------------------------------------------------------------------------------------


def test_a_batch_is_cancelled_with_the_answers_so_far(
    make_client: Callable[..., TestClient], fake: FakeBackend
) -> None:
    client = make_client(max_batch_requests=1)
    fake.hold("hello 3")
    made = create(client, request(0), request(1), request(2), request(3))
    path = f"/v1/batches/{made['id']}"
    end = time.monotonic() + 10
    while client.get(path).json()["request_counts"]["completed"] < 3 and time.monotonic() < end:
        time.sleep(0.01)
    cancelling = client.post(f"{path}/cancel").json()
    assert cancelling["status"] == "cancelling"
    fake.gate.set()
    batch = wait(client, made["id"])
    assert batch["status"] == "cancelled"
    assert batch["cancelled_at"] >= batch["cancelling_at"]
    answered = [line["custom_id"] for line in lines_of(client, batch["output_file_id"])]
    assert answered == ["r0", "r1", "r2"]
    [left] = lines_of(client, batch["error_file_id"])
    assert (left["custom_id"], left["error"]["code"]) == ("r3", "batch_cancelled")
    again = client.post(f"{path}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "batch_ended")


def test_a_batch_expires_with_the_answers_so_far(
    make_client: Callable[..., TestClient], fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(max_batch_requests=1)
    monkeypatch.setattr(batches, "WINDOW_SECONDS", 1.0)
    fake.hold("hello 1")
    batch = wait(client, create(client, request(0), request(1))["id"])
    fake.gate.set()
    assert batch["status"] == "expired"
    assert [line["custom_id"] for line in lines_of(client, batch["output_file_id"])] == ["r0"]
    [left] = lines_of(client, batch["error_file_id"])
    assert (left["custom_id"], left["error"]["code"]) == ("r1", "batch_expired")


@pytest.mark.parametrize(
    ("lines", "options", "code"),
    [((b"",), {}, "unsupported_file"), ((b"\n \n",), {}, "empty_file"),
     ((b"{}", b"{}", b"{}"), {"max_batch_lines": 2}, "too_many_lines")],
)  # fmt: skip
def test_a_file_that_is_no_batch_fails_as_a_whole(
    make_client: Callable[..., TestClient],
    lines: tuple[bytes, ...],
    options: dict[str, Any],
    code: str,
) -> None:
    client = make_client(**options)
    if code == "unsupported_file":  # it is refused when it is uploaded
        response = client.post("/v1/files", files={"file": ("a", b"")}, data={"purpose": "batch"})
        assert response.json()["error"]["code"] == code
        return
    batch = wait(client, create(client, *lines)["id"])
    assert batch["status"] == "failed"
    [fault] = batch["errors"]["data"]
    assert fault["code"] == code
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)


def test_a_stop_of_the_server_fails_a_batch_and_keeps_what_ended(
    make_app: Callable[..., FastAPI], fake: FakeBackend, tmp_path: Path, wait_until_open: Any
) -> None:
    options = {"store": tmp_path.as_uri(), "shutdown_seconds": 0.1, "max_batch_requests": 1}
    fake.hold("hello 1")
    with TestClient(make_app(**options)) as client:
        wait_until_open(client.app)
        made = create(client, request(0), request(1))
        path, end = f"/v1/batches/{made['id']}", time.monotonic() + 10
        while client.get(path).json()["request_counts"]["completed"] < 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        Timer(1.0, fake.gate.set).start()  # the model's thread ends its turn after the stop
    with TestClient(make_app(**options)) as client:
        wait_until_open(client.app)
        batch = client.get(path).json()
        assert batch["status"] == "failed"
        assert [fault["code"] for fault in batch["errors"]["data"]] == ["server_restarted"]
        assert [line["custom_id"] for line in lines_of(client, batch["output_file_id"])] == ["r0"]
        assert batch["error_file_id"] is None


def test_a_batch_of_a_server_that_was_killed_has_failed_after_a_while(
    make_client: Callable[..., TestClient],
    fake: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(registry, "DEAD_SECONDS", 0.1)
    fake.hold("hello")
    first, second = (make_client(store=tmp_path.as_uri()) for _ in range(2))
    made = create(first, request(0))

    async def stay(_: object) -> None:
        return None

    monkeypatch.setattr(first.app.state.batches, "_beat", stay)  # it does nothing any more
    wait_for(lambda: second.get(f"/v1/batches/{made['id']}").status_code == 200)
    batch = wait(second, made["id"])
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == "server_restarted"
    fake.gate.set()


def test_a_batch_is_seen_and_left_alone_by_another_server(
    make_client: Callable[..., TestClient],
    fake: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(registry, "DEAD_SECONDS", 2.0)
    fake.hold("hello")
    first, second = (make_client(store=tmp_path.as_uri()) for _ in range(2))
    made = create(first, request(0))
    path = f"/v1/batches/{made['id']}"
    wait_for(lambda: second.get(path).status_code == 200)
    time.sleep(3.0)
    assert second.get(path).json()["status"] == "in_progress"
    fake.gate.set()
    batch = wait(second, made["id"])
    assert batch["status"] == "completed"
    assert [line["custom_id"] for line in lines_of(second, batch["output_file_id"])] == ["r0"]


def test_a_batch_is_cancelled_through_another_server(
    make_client: Callable[..., TestClient],
    fake: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.02)
    fake.hold("hello")
    first, second = (make_client(store=tmp_path.as_uri()) for _ in range(2))
    made = create(first, request(0))
    path = f"/v1/batches/{made['id']}"
    wait_for(lambda: second.get(path).status_code == 200)
    assert second.post(f"{path}/cancel").json()["status"] == "cancelling"
    Timer(0.5, fake.gate.set).start()
    assert wait(first, made["id"])["status"] == "cancelled"
    assert wait(second, made["id"])["status"] == "cancelled"


# -- owners, quotas and the contract --------------------------------------------------------------


def test_a_batch_is_its_owners_and_keeps_to_the_quotas(
    make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    (alice, first), (bob, second) = new_key("alice"), new_key("bob")
    keys = tmp_path / "keys.toml"
    quotas = "quotas = { requests_per_minute = 240 }\n"
    keys.write_text(first.toml() + quotas + second.toml())
    client = make_client(api_keys_file=keys)
    client.headers["authorization"] = f"Bearer {alice}"
    made = create(client, *(request(n) for n in range(3)))
    assert wait(client, made["id"])["request_counts"]["completed"] == 3
    keeper = client.app.state.batches  # type: ignore[attr-defined]
    bucket = keeper._send.__self__._quotas._usage["alice"].requests
    assert bucket._units < 240 - 5  # the upload, its batch, a look at it, and three requests
    client.headers["authorization"] = f"Bearer {bob}"
    assert client.get("/v1/batches").json()["data"] == []
    path = f"/v1/batches/{made['id']}"
    for response in (client.get(path), client.post(f"{path}/cancel")):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "batch_not_found")
    body = {"input_file_id": made["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    error = client.post("/v1/batches", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("file_not_found", "input_file_id")


def test_a_request_over_a_quota_is_sent_again_later(
    make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    key, entry = new_key("alice")
    keys = tmp_path / "keys.toml"
    keys.write_text(entry.toml() + "quotas = { document_tokens_per_hour = 14400 }\n")
    client = make_client(api_keys_file=keys)  # four tokens a second
    client.headers["authorization"] = f"Bearer {key}"
    bucket = client.app.state.batches._send.__self__._quotas._usage["alice"].document_tokens  # type: ignore[attr-defined]
    bucket._units = 5.0
    body = {"document": "abcd", "query": "q"}
    lines = (request(n, "/v1/answers", **body) for n in range(2))
    batch = wait(client, create(client, *lines, endpoint="/v1/answers")["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


def test_batches_are_listed_in_pages(client: TestClient) -> None:
    ids = [create(client, request(0))["id"] for _ in range(4)]
    page = client.get("/v1/batches", params={"limit": 2}).json()
    assert [batch["id"] for batch in page["data"]] == ids[:1:-1]
    assert page["has_more"]
    rest = client.get("/v1/batches", params={"after": page["last_id"]}).json()
    assert [batch["id"] for batch in rest["data"]] == ids[1::-1]
    assert not rest["has_more"]
    assert client.get("/v1/batches", params={"after": "batch_x"}).status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 422, "endpoint"),
        ({"endpoint": "/health/live"}, 422, "endpoint"),
        ({"completion_window": "1h"}, 422, "completion_window"),
        ({"completion_window": None}, 422, "completion_window"),
        ({"input_file_id": "file-0"}, 404, "input_file_id"),
        ({"input_file_id": "\ud83d"}, 422, "input_file_id"),
        ({"colour": 1}, 422, "colour"),
        ({"metadata": {"a": 1}}, 422, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at"}}, 422, "output_expires_after.seconds"),
    ],
)
def test_what_cannot_be_begun_is_refused_by_its_field(
    client: TestClient, fields: dict[str, Any], status: int, param: str
) -> None:
    body = {"input_file_id": upload(client, request(0)), "endpoint": CHAT}
    content = json.dumps({**body, "completion_window": "24h", **fields})
    response = client.post(
        "/v1/batches", content=content, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_only_files_for_batches_are_inputs(client: TestClient) -> None:
    made = upload(client, request(0), purpose="user_data")
    body = {"input_file_id": made, "endpoint": CHAT, "completion_window": "24h"}
    error = client.post("/v1/batches", json=body).json()["error"]
    assert error["message"] == "input_file_id: the file must have the purpose batch"


def test_openais_client(tiny_url: str) -> None:
    with openai.OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0) as client:
        lines = "".join(json.dumps(request(n)) + "\n" for n in range(3))
        file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"run": "7"},
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert made.status in ("validating", "in_progress")
        end = time.monotonic() + 60
        while (batch := client.batches.retrieve(made.id)).status != "completed":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert batch.output_file_id is not None
        output = client.files.retrieve(batch.output_file_id)
        assert (output.purpose, output.expires_at) == ("batch_output", output.created_at + 7200)
        text = client.files.content(batch.output_file_id).text
        assert [json.loads(line)["custom_id"] for line in text.splitlines()] == ["r0", "r1", "r2"]
        assert made.id in [found.id for found in client.batches.list(limit=1)]
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(made.id)
