"""The seconds of an answer's phases, and the events of its stream, for every kind of program."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from refine_server.clients import sse

EXAMPLES = Path(__file__).parents[3] / "examples"
DOCUMENT = (EXAMPLES / "tiny_example.md").read_text()
ASK = {"query": "What is the harbour code?", "max_tokens": 4}
STEPS = {"optimizer": {"steps": 2}}
ON_EVIDENCE = {"on": {"kind": "evidence"}, **STEPS}
ANSWERS: dict[str, dict[str, Any]] = {
    "whole document": {"document": DOCUMENT, "adapt": STEPS},
    "evidence": {"document": DOCUMENT, "adapt": ON_EVIDENCE},
    "no adaptation": {"document": DOCUMENT},
    "base as well": {"document": DOCUMENT, "adapt": STEPS, "compare_base": True},
}
KEPT: dict[str, dict[str, Any]] = {
    "kept whole document": {"document": DOCUMENT, "adapt": STEPS},
    "kept on evidence": {
        "document": DOCUMENT,
        "adapt": ON_EVIDENCE,
        "queries": ["What is the harbour code?"],
    },
}
PHASES = ("queue", "prefill", "adapt", "judge", "decode", "other")


@pytest.fixture
def client(tiny_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_url, timeout=120) as client:
        yield client


def stream(client: httpx.Client, method: str, path: str, **more: Any) -> list[tuple[str, Any]]:
    response = client.request(method, path, **more)
    assert response.status_code == 200, response.text
    events = sse.parse([response.content])
    told = [(event.event, json.loads(event.data)) for event in events]
    return [(name, data) for name, data in told if name != "request.progress"]


def check_timings(timings: dict[str, float], wall: float) -> None:
    """Check that the phases are the whole of the time, and the time that the client saw."""
    seconds = {phase: timings[f"{phase}_seconds"] for phase in PHASES}
    assert all(value >= -1e-6 for value in seconds.values()), seconds
    assert sum(seconds.values()) == pytest.approx(timings["total_seconds"], abs=1e-6)
    assert 0 < timings["total_seconds"] <= wall
    assert timings["decode_seconds"] > 0


@pytest.mark.parametrize("kind", ANSWERS)
def test_phases_are_the_whole_time(client: httpx.Client, kind: str) -> None:
    began = time.monotonic()
    answer = client.post("/v1/answers", json={**ASK, **ANSWERS[kind]}).json()
    timings = answer["timings"]
    check_timings(timings, time.monotonic() - began)
    assert (timings["adapt_seconds"] > 0) is (kind != "no adaptation")
    judged = (answer["adaptation_report"] or {"held_out": []})["held_out"]
    assert timings["judge_seconds"] == pytest.approx(sum(one["seconds"] for one in judged))
    assert bool(judged) is (kind in ("whole document", "base as well"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_stream_tells_how_far_the_answer_is(client: httpx.Client, kind: str) -> None:
    events = stream(client, "POST", "/v1/answers", json={**ASK, **ANSWERS[kind], "stream": True})
    names = [name for name, _ in events]
    assert names[0] == "request.accepted"
    assert names[-1] == "answer.completed"
    first, last = events[0][1], events[-1][1]
    assert first["id"] == last["id"]
    assert first["queue_position"] == 0
    assert first["estimate"]["total_seconds"] > 0
    readings = [data for name, data in events if name == "document.reading"]
    assert readings[-1]["tokens_read"] == last["usage"]["document_tokens"]
    assert [r["tokens_read"] for r in readings] == sorted(r["tokens_read"] for r in readings)
    steps = [data for name, data in events if name == "adaptation.step"]
    if "adapt" not in ANSWERS[kind]:
        assert "adaptation.started" not in names
        assert steps == []
        return
    assert events[names.index("adaptation.started")][1]["steps"] == 2
    assert [(step["step"], step["steps"]) for step in steps] == [(1, 2), (2, 2)]
    assert all(step["seconds_left"] >= 0 for step in steps)


@pytest.mark.parametrize("kind", KEPT)
def test_an_adaptation_tells_how_far_it_is_and_its_answers_wait_for_it(
    client: httpx.Client, kind: str
) -> None:
    # Another seed, so that no earlier adaptation is joined.
    body = {**KEPT[kind], "adapt": {**KEPT[kind]["adapt"], "seed": 7}}
    made = client.post("/v1/adaptations", json=body).json()
    assert made["estimate"]["adapt_seconds"] > 0
    assert made["estimate"]["decode_seconds"] == 0
    began = time.monotonic()
    asked = {**ASK, "adaptation": made["id"], "compare_base": True}
    answer = client.post("/v1/answers", json=asked).json()
    check_timings(answer["timings"], time.monotonic() - began)
    assert answer["base_answer"] is not None
    assert answer["adaptation_report"] is None  # the resource has it
    path = f"/v1/adaptations/{made['id']}"
    assert len(client.get(path).json()["steps"]) == 2
    events = stream(client, "GET", f"{path}/events")
    names = [name for name, _ in events]
    assert names[0] == "request.accepted"
    assert events[0][1]["id"] == made["id"]
    assert names[names.index("adaptation.started") :] == [
        *("adaptation.started", "adaptation.step", "adaptation.step", "adaptation.ready")
    ]


def test_a_stream_that_was_cut_is_followed_again_from_its_beginning(client: httpx.Client) -> None:
    body = {"document": DOCUMENT, "adapt": {"optimizer": {"steps": 4}, "seed": 8}}
    path = f"/v1/adaptations/{client.post('/v1/adaptations', json=body).json()['id']}/events"
    with client.stream("GET", path) as cut:
        for line in cut.iter_lines():
            if line == "event: adaptation.step":
                break
    again = stream(client, "GET", path)
    assert again[0][0] == "request.accepted"
    steps = [data["step"] for name, data in again if name == "adaptation.step"]
    assert steps == list(range(1, len(steps) + 1))
    assert again[-1][0] == "adaptation.ready"
