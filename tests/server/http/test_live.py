"""Over real connections: disconnects, shutdown, full queues."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from refine_server.clients import ClientError, RefineClient
from refine_server.clients.errors import NotFoundError
from refine_server.clients.types import Accepted, Adaptation, Answer, StepMade
from refine_server.clients.wire import Event

HELD = {"document": "held", "query": "gone", "adapt": {"optimizer": {"steps": 50}}}


def ask(url: str, body: dict[str, Any]) -> list[Event]:
    with RefineClient(url) as client:
        return list(client.stream_answer(**body))


def test_a_client_that_leaves_cancels_its_job_at_the_next_step(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    fake.hold("held")
    url = live()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/answers", json=HELD, timeout=0.3)
    assert fake.turns == ["gone"]
    wait_for(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    wait_for(lambda: "gone" in fake.closed)
    assert fake.turns == ["gone"]
    assert 'refine_wasted_seconds_total{reason="disconnect"}' in httpx.get(f"{url}/metrics").text


def test_a_client_that_leaves_a_stream_cancels_its_job_at_the_next_step(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    fake.hold("held")
    url = live()
    with httpx.stream("POST", f"{url}/v1/answers", json={**HELD, "stream": True}) as response:
        assert response.status_code == 200
        wait_for(lambda: fake.turns == ["gone"])
    ended = 'refine_requests_total{endpoint="/v1/answers",status="499"} 1.0'
    wait_for(lambda: ended in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    wait_for(lambda: "gone" in fake.closed)
    assert fake.turns == ["gone"]


LEAVERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/answers", {"query": "left"}),
    ("/v1/completions", {"prompt": "left"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "left"}]}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), LEAVERS)
def test_a_client_that_leaves_while_it_waits_for_an_adaptation_is_noticed(
    live: Callable[..., str],
    fake: Any,
    wait_for: Callable[..., None],
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    fake.hold("kept")
    url = live()
    made = httpx.post(f"{url}/v1/adaptations", json={"document": "kept"}).json()["id"]
    names = {"adaptation": made} if path == "/v1/answers" else {"model": made}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}{path}", json={**body, **names, "stream": stream}, timeout=0.2)
    wait_for(lambda: f'endpoint="{path}",status="499"' in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    wait_for(lambda: fake.closed == ["kept"])  # the adaptation goes on, the question does not
    assert "left" not in fake.turns


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), LEAVERS)
def test_a_client_that_leaves_the_queue_gives_its_place_back(
    live: Callable[..., str],
    fake: Any,
    wait_for: Callable[..., None],
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    fake.hold("held")
    url = live(max_active=1)
    thread = threading.Thread(target=lambda: ask(url, HELD))
    thread.start()
    wait_for(lambda: fake.turns == ["gone"])
    document = {"document": "some words"} if path == "/v1/answers" else {}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}{path}", json={**body, **document, "stream": stream}, timeout=0.2)
    wait_for(lambda: "refine_queue_depth 0.0" in httpx.get(f"{url}/metrics").text)
    wait_for(lambda: f'endpoint="{path}",status="499"' in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    thread.join()
    assert "left" not in fake.turns


def test_a_full_queue_is_429_with_retry_after(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    fake.hold("held")
    url = live(max_active=1, max_queue=0)
    thread = threading.Thread(target=lambda: ask(url, HELD))
    thread.start()
    wait_for(lambda: fake.turns == ["gone"])
    response = httpx.post(f"{url}/v1/answers", json={**HELD, "stream": True})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1
    fake.gate.set()
    thread.join()


def test_a_timeout_is_504_or_a_final_error_event(live: Callable[..., str], fake: Any) -> None:
    fake.hold("held")
    url = live(request_timeout_seconds=0.5)
    held = {**HELD, "max_tokens": 1}  # so that there seems to be time for a step
    response = httpx.post(f"{url}/v1/answers", json=held)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    with pytest.raises(ClientError, match="longer than") as late:
        ask(url, held)
    assert late.value.code == "timeout"


def test_a_chunked_body_over_the_limit_is_413(live: Callable[..., str]) -> None:
    url = live(max_body_bytes=1000)
    headers = {"content-type": "application/json"}
    pieces = (b"x" * 100 for _ in range(20))
    response = httpx.post(f"{url}/v1/answers", content=pieces, headers=headers)
    assert response.status_code == 413
    assert response.headers["x-request-id"]


def test_the_client_follows_a_stream(live: Callable[..., str]) -> None:
    url = live()
    with RefineClient(url) as client:
        assert client.is_ready()
        assert list(client.wait_until_ready()) == []
    body = {"document": "a\u2028b", "query": "\u2028\x85é", "adapt": {"optimizer": {"steps": 1}}}
    events = ask(url, body)
    assert [event.name for event in events][-1] == "answer.completed"
    assert isinstance(events[-1], Answer)
    assert events[-1].answer == "\u2028\x85é"


def test_the_client_reaches_this_machine_without_a_proxy(
    live: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = live()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert RefineClient(url).is_ready()
    assert ask(url, {"document": "a", "query": "b"})


def test_the_client_adapts_once_and_asks_often(live: Callable[..., str]) -> None:
    with RefineClient(live()) as client:
        made = client.adapt("a document", adapt={"optimizer": {"steps": 2}})
        assert client.adapt("a document", adapt={"optimizer": {"steps": 2}}).id == made.id
        accepted, *told, ready = client.follow_adaptation(made.id)
        assert isinstance(accepted, Accepted)
        assert accepted.id == made.id
        steps = [event for event in told if isinstance(event, StepMade)]
        assert isinstance(ready, Adaptation)
        assert client.wait_for_adaptation(made.id).steps == ready.steps
        assert [step.step for step in ready.steps] == [step.step for step in steps] == [1, 2]
        assert client.adaptation(made.id).status == ready.status == "ready"
        assert [adaptation.id for adaptation in client.adaptations()] == [made.id]
        for query in ("one", "two"):
            answer = client.answer(query, adaptation=made.id)
            assert answer.adaptation == made.id
            assert answer.answered_by == "adapted"
        client.delete_adaptation(made.id)
        with pytest.raises(NotFoundError):
            client.adaptation(made.id)


def test_the_client_reports_errors(live: Callable[..., str], fake: Any) -> None:
    url = live()
    fake.fail("crash")
    with pytest.raises(ClientError, match="no such field") as refused:
        ask(url, {"document": "a", "query": "b", "colour": 1})
    assert refused.value.param == "colour"
    with pytest.raises(ClientError, match="Internal error"):
        ask(url, {"document": "crash", "query": "b"})
    with pytest.raises(ClientError, match="no server answers"):
        ask("http://127.0.0.1:9", HELD)
    with pytest.raises(ClientError, match="http://host:port"):
        ask("localhost:80", HELD)
    with pytest.raises(ClientError, match="Not Found"):
        ask(f"{url}/elsewhere", HELD)
    assert not RefineClient("http://127.0.0.1:9").is_ready()


def test_other_requests_are_answered_while_the_model_works(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    fake.hold("held")
    url = live()
    thread = threading.Thread(target=lambda: ask(url, HELD))
    thread.start()
    wait_for(lambda: fake.turns == ["gone"])
    assert httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    assert "refine_queue_depth 0.0" in httpx.get(f"{url}/metrics", timeout=5).text
    long = json.dumps({"document": "word " * 60, "query": "x", "on_overflow": "error"})
    headers = {"content-type": "application/json"}
    refused = httpx.post(f"{url}/v1/answers", content=long, headers=headers, timeout=5)
    assert refused.status_code == 413
    fake.gate.set()
    thread.join()
