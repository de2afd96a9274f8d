"""Traces over HTTP: in a stream, in a response, and in what a kept adaptation repeats."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from refine_server.clients import RefineClient, sse
from refine_server.clients.traces import DocumentTrace
from refine_server.clients.types import Answer, StepMade
from refine_server.server.adaptations import maker

DOCUMENT = "The harbour code is amber. The bakery owner is Tobias Hartley. " * 6
QUERY = "What is the harbour code?"
ADAPT = {"guard": "none", "optimizer": {"steps": 2}, "trace": True}


@pytest.fixture
def api(tiny_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_url, timeout=60) as client:
        yield client


def events(api: httpx.Client, path: str, body: dict[str, Any] | None = None) -> list[Any]:
    method = "GET" if body is None else "POST"
    with api.stream(method, path, json=body) as response:
        assert response.status_code == 200, response.read()
        found = [(e.event, json.loads(e.data)) for e in sse.parse(response.iter_bytes())]
    return [(name, data) for name, data in found if name != "request.progress"]


def adapted(api: httpx.Client, **fields: Any) -> str:
    body = {"document": DOCUMENT, "adapt": ADAPT, **fields}
    adaptation: str = api.post("/v1/adaptations", json=body).json()["id"]
    for _ in range(600):
        if api.get(f"/v1/adaptations/{adaptation}").json()["status"] == "ready":
            return adaptation
        time.sleep(0.05)
    raise AssertionError("it did not end")


def test_a_stream_tells_the_document_before_and_after_its_steps(api: httpx.Client) -> None:
    body = {"document": DOCUMENT, "query": QUERY, "adapt": ADAPT, "stream": True}
    found = events(api, "/v1/answers", body)
    told = [name for name, _ in found if name in ("document.trace", "adaptation.step")]
    assert told == ["document.trace", "adaptation.step", "adaptation.step", "document.trace"]
    (before, after), last = [d for n, d in found if n == "document.trace"], found[-1][1]
    assert last["trace"] == {"before": before, "after": after}
    steps = [data for name, data in found if name == "adaptation.step"]
    reported = last["adaptation_report"]["steps"]
    assert [step["trace"] for step in steps] == [step["trace"] for step in reported]
    assert before["entropy"][5] >= 0


def test_without_asking_there_is_none(api: httpx.Client) -> None:
    adapt = {**ADAPT, "trace": False}
    body = {"document": DOCUMENT, "query": QUERY, "adapt": adapt, "stream": True}
    found = events(api, "/v1/answers", body)
    assert "document.trace" not in [name for name, _ in found]
    assert found[-1][1]["trace"] is None
    assert [s["trace"] for s in found[-1][1]["adaptation_report"]["steps"]] == [None, None]


def test_the_python_client_reads_it(tiny_url: str) -> None:
    with RefineClient(tiny_url) as client:
        found = list(client.stream_answer(QUERY, document=DOCUMENT, adapt=ADAPT))
    before, after = [event for event in found if isinstance(event, DocumentTrace)]
    assert (before.stage, after.stage) == ("before", "after")
    step = next(event for event in found if isinstance(event, StepMade))
    assert step.trace is not None
    own = step.trace.positions[0].own
    assert len(own.pieces) == len(own.tokens)
    answer = found[-1]
    assert isinstance(answer, Answer)
    assert answer.trace is not None
    assert answer.trace.before == before


def test_the_events_of_a_kept_adaptation_repeat_it_and_the_resource_has_none(
    api: httpx.Client,
) -> None:
    adaptation = adapted(api, ttl_seconds=50)
    for _ in range(2):
        found = events(api, f"/v1/adaptations/{adaptation}/events")
        assert [name for name, _ in found].count("document.trace") == 2
        step = next(data for name, data in found if name == "adaptation.step")
        assert step["trace"]["weights"]
    resource = api.get(f"/v1/adaptations/{adaptation}").json()
    assert [step["trace"] for step in resource["steps"]] == [None, None]


def test_traces_of_older_adaptations_are_dropped(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "MAX_TRACED", 1)
    older = adapted(api, document=DOCUMENT + "Older.")
    adapted(api, document=DOCUMENT + "Newer.")
    found = events(api, f"/v1/adaptations/{older}/events")
    assert "document.trace" not in [name for name, _ in found]
    steps = [data for name, data in found if name == "adaptation.step"]
    assert [step["trace"] for step in steps] == [None, None]
    assert found[-1][0] == "adaptation.ready"


def test_words_of_the_base_answer_are_quoted_too(api: httpx.Client) -> None:
    body = {"document": DOCUMENT, "query": QUERY, "compare_base": True}
    told = api.post("/v1/answers", json=body).json()
    assert told["base_answer"] == told["answer"]
    assert told["base_quotes"] == told["quotes"]
