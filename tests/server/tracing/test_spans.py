"""Spans: a request's phases as children of its own span, which continues the client's trace."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from refine_server.server import logs
from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from refine_server.server.tracing.tracing import Tracing
from support.fake_backend import FakeBackend
from support.live_server import wait_for, wait_until_open

KEY = "alice-alice-alice-1"
HEADERS = {"authorization": f"Bearer {KEY}"}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT}-01"
BODY = {"document": "secretword b c", "query": "whisper", "adapt": {"optimizer": {"steps": 2}}}


class Traced:
    """A client of an app whose spans are kept in memory."""

    def __init__(self, fake: FakeBackend) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        settings = Settings(
            model="fake",
            store="none",
            shutdown_seconds=0.3,
            api_keys=f"alice:{KEY}",  # type: ignore[arg-type]
        )
        self.app = create_app(settings, fake.open, Tracing(provider))
        self.client = TestClient(self.app, raise_server_exceptions=False, headers=HEADERS)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Spans that have ended, in the order of their beginnings."""
        return sorted(self._exporter.get_finished_spans(), key=lambda s: s.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def traced(fake: FakeBackend) -> Any:
    traced = Traced(fake)
    with traced.client:
        wait_until_open(traced.app)
        yield traced


def test_an_answer_is_a_trace_of_its_phases_and_steps(traced: Traced) -> None:
    reply = traced.client.post("/v1/answers", json=BODY, headers={"traceparent": TRACEPARENT})
    assert reply.status_code == 200
    [request] = traced.named("POST /v1/answers")
    assert request.parent is not None
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert f"{request.parent.span_id:016x}" == PARENT
    assert reply.headers["traceparent"] == f"00-{TRACE_ID}-{request.context.span_id:016x}-01"
    [adapt] = traced.named("adapt")
    parents = {
        (span.name, span.parent.span_id)
        for span in traced.spans
        if span.parent is not None and span is not request
    }
    own, under_adapt = request.context.span_id, adapt.context.span_id
    phases = {(name, own) for name in ("queue", "read", "adapt", "decode")}
    assert parents == phases | {("step", under_adapt)}
    assert len(traced.named("step")) == 2


def test_a_step_tells_its_loss_reward_and_gradient(traced: Traced) -> None:
    traced.client.post("/v1/answers", json=BODY)
    first, second = traced.named("step")
    assert first.attributes is not None
    assert first.attributes["refine.loss"] == 2.0
    assert first.attributes["refine.reward_mean"] == 0.5
    assert first.attributes["refine.grad_norm"] == 1.0
    assert [s.attributes["refine.step"] for s in (first, second) if s.attributes] == [1, 2]
    assert first.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= second.start_time
    [adapt] = traced.named("adapt")
    assert adapt.attributes is not None
    assert (adapt.attributes["refine.steps"], adapt.attributes["refine.answered_by"]) == (
        2,
        "adapted",
    )


def test_a_kept_adaptation_belongs_to_the_trace_of_its_request(traced: Traced) -> None:
    headers = {"traceparent": TRACEPARENT}
    body = {"document": "secretword b", "adapt": {"optimizer": {"steps": 2}}}
    traced.client.post("/v1/adaptations", json=body, headers=headers)
    wait_for(lambda: len(traced.named("adapt")) == 1)
    [adapt] = traced.named("adapt")
    assert f"{adapt.context.trace_id:032x}" == TRACE_ID


def test_a_request_that_is_cut_off_leaves_no_open_span(traced: Traced, fake: FakeBackend) -> None:
    late = {**BODY, "document": fake.hold("held"), "max_tokens": 1, "timeout_seconds": 0.5}
    assert traced.client.post("/v1/answers", json=late).status_code == 504
    fake.gate.set()
    [adapt] = traced.named("adapt")
    assert not adapt.status.is_ok
    [request] = traced.named("POST /v1/answers")
    assert not request.status.is_ok


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_probes_are_no_traces(traced: Traced, path: str) -> None:
    reply = traced.client.get(path)
    assert "traceparent" not in reply.headers
    assert traced.spans == []


def test_the_log_names_the_trace_and_nothing_has_a_text_or_a_key(
    traced: Traced, fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    headers = {"traceparent": TRACEPARENT}
    fake.fail("crash")
    traced.client.post("/v1/answers", json=BODY, headers=headers)
    traced.client.post("/v1/answers", json={**BODY, "document": "secretword crash"})
    traced.client.post("/v1/answers", json={**BODY, "document": "secretword " * 100})
    traced.client.post("/v1/answers", json={"document": "secretword", "whisper": 1})
    body = {"document": "secretword b", "adapt": {"optimizer": {"steps": 2}}}
    made = traced.client.post("/v1/adaptations", json=body, headers=headers).json()["id"]
    wait_for(lambda: f"adaptation {made} is ready" in caplog.text)
    traced.client.post("/v1/answers", json={"adaptation": made, "query": "whisper"})
    lines = [logs.json_formatter().format(record) for record in caplog.records]
    told = {line["message"]: line for line in map(json.loads, lines)}
    assert told["POST /v1/adaptations 202"]["trace_id"] == TRACE_ID
    assert told[f"adaptation {made} is ready"]["trace_id"] == TRACE_ID
    assert told[f"adaptation {made} is ready"]["adaptation"] == made
    everything = "".join(lines) + "".join(span.to_json() for span in traced.spans)
    for secret in ("secretword", "whisper", KEY):
        assert secret not in everything


def test_without_traces_there_is_no_id(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    reply = make_client().post("/v1/answers", json=BODY, headers={"traceparent": TRACEPARENT})
    assert "traceparent" not in reply.headers
    assert not any("trace_id" in vars(record) for record in caplog.records)
