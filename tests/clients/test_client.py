"""Both clients against a scripted server: typed events and errors, and retries."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from refine_server.clients import AsyncRefineClient, RefineClient, errors
from refine_server.clients.types import (
    Accepted,
    Adaptation,
    AdaptationStarted,
    Answer,
    AnswerDelta,
    Estimate,
    Event,
    Progress,
    QueuePosition,
    Reading,
    Step,
    StepMade,
    UnknownEvent,
)

MEASURED = (
    *("loss", "ntp_loss", "grpo_loss", "reward_mean", "reward_std", "entropy_mean"),
    *("kl", "attention"),
)
STEP = dict.fromkeys(MEASURED, 0.5) | {
    "step": 1,
    "grad_norm": None,
    "seconds": 0.25,
    "rollout_tokens": 4,
    "trace": {"positions": [], "left_out": 0, "weights": [], "held_out": None},
}
REPORT = {
    "objective": "refine",
    "steps": [STEP],
    "accepted_step": 1,
    "stopped": None,
    "first_ntp_loss": 2.0,
    "final_ntp_loss": 1.0,
    "held_out": [{"step": 0, "loss": 2.0, "accuracy": 0.5, "seconds": 0.1}],
    "fast_weight_bytes": 64,
}
USAGE = dict.fromkeys(["document_tokens", "query_tokens", "completion_tokens", "rollout_tokens"], 3)
TIMINGS = dict.fromkeys(
    [
        "queue_seconds",
        "prefill_seconds",
        "adapt_seconds",
        "judge_seconds",
        "decode_seconds",
        "other_seconds",
        "total_seconds",
        "time_to_first_token_seconds",
    ],
    0.5,
)
ANSWER = {
    "id": "answer-1",
    "model": "m",
    "answer": "yes",
    "base_answer": None,
    "citations": [],
    "quotes": [],
    "base_quotes": [],
    "trace": None,
    "overflow": None,
    "finish_reason": "stop",
    "answered_by": "adapted",
    "kept_base_reason": None,
    "adaptation": None,
    "context": "document+passages",
    "adaptation_report": REPORT,
    "usage": USAGE,
    "timings": TIMINGS,
}
COST = {
    **dict.fromkeys(["read_seconds", "adapt_seconds", "decode_seconds"], 1.0),
    "total_seconds": 3.0,
    "memory_bytes": 2**30,
}
LEFT = {"seconds_left": 3.0}
MADE = {**STEP, "steps": 8, **LEFT}
STREAM = [
    ("request.accepted", {"id": "answer-1", "queue_position": 2, "estimate": COST, **LEFT}),
    ("request.queued", {"queue_position": 0, **LEFT}),
    ("document.reading", {"tokens_read": 1, "document_tokens": 3, **LEFT}),
    ("request.progress", {"phase": "reading", "seconds": 2.0, **LEFT}),
    ("adaptation.started", {"steps": 8, **LEFT}),
    ("adaptation.step", MADE),
    ("answer.delta", {"text": "yes"}),
    ("of.tomorrow", {"x": 1}),
    ("answer.completed", ANSWER),
]

Handler = Callable[[httpx.Request], httpx.Response]


def stream(events: list[tuple[str, Any]]) -> httpx.Response:
    text = "".join(f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n" for name, data in events)
    headers = {"content-type": "text/event-stream", "x-request-id": "req-7"}
    return httpx.Response(200, text=text, headers=headers)


def refused(status: int, kind: str, **headers: str) -> httpx.Response:
    error = {"message": "no", "type": kind, "param": "adapt.optimizer.steps", "code": "c"}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "r", **headers})


class Sync:
    """The synchronous client; streams are returned as lists of events."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def client(self) -> RefineClient:
        transport = httpx.MockTransport(self.handler)
        return RefineClient("http://server", api_key="key", transport=transport)

    def stream(self, **options: Any) -> list[Event]:
        with self.client() as client:
            return list(client.stream_answer("a question", document="a document", **options))

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        with self.client() as client:
            result = getattr(client, method)(*arguments, **options)
            return list(result) if isinstance(result, Iterator) else result


class Async(Sync):
    """The asynchronous client, with the same interface."""

    def stream(self, **options: Any) -> list[Event]:
        async def run() -> list[Event]:
            transport = httpx.MockTransport(self.handler)
            async with AsyncRefineClient("http://server", transport=transport) as client:
                events = client.stream_answer("a question", document="a document", **options)
                return [event async for event in events]

        return asyncio.run(run())

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        async def run() -> Any:
            transport = httpx.MockTransport(self.handler)
            async with AsyncRefineClient("http://server", transport=transport) as client:
                result = getattr(client, method)(*arguments, **options)
                if isinstance(result, AsyncIterator):
                    return [event async for event in result]
                return await result

        return asyncio.run(run())


@pytest.fixture(params=[Sync, Async])
def kind(request: pytest.FixtureRequest) -> type[Sync]:
    chosen: type[Sync] = request.param
    return chosen


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    # The clients' names, not the modules' functions: servers of other tests sleep in this process.
    timer = SimpleNamespace(sleep=made.append, monotonic=time.monotonic)
    monkeypatch.setattr("refine_server.clients.client.time", timer)
    monkeypatch.setattr("refine_server.clients.async_client.asyncio", SimpleNamespace(sleep=sleep))
    return made


class Script:
    """Answers each request with the next reply, or raises it."""

    def __init__(self, *replies: httpx.Response | type[Exception]) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, httpx.Response):
            return reply
        raise reply("gone")


def test_a_stream_is_typed_events(kind: type[Sync]) -> None:
    script = Script(stream(STREAM))
    *before, step, delta, unknown, answer = kind(script).stream(
        adapt={"optimizer": {"steps": 1}}, max_tokens=3
    )
    accepted, queued, reading, progress, started = before
    assert isinstance(accepted, Accepted)
    assert accepted.estimate is not None
    assert (accepted.queue_position, accepted.estimate.total_seconds) == (2, 3.0)
    assert isinstance(queued, QueuePosition)
    assert isinstance(reading, Reading)
    assert (reading.tokens_read, reading.document_tokens) == (1, 3)
    assert isinstance(progress, Progress)
    assert progress.phase == "reading"
    assert isinstance(started, AdaptationStarted)
    assert isinstance(step, Step)
    assert isinstance(step, StepMade)
    assert (step.step, step.steps, step.seconds_left) == (1, 8, 3.0)
    assert (step.loss, step.grad_norm) == (0.5, None)
    assert isinstance(delta, AnswerDelta)
    assert delta.text == "yes"
    assert isinstance(unknown, UnknownEvent)
    assert unknown.model_extra == {"x": 1}
    assert isinstance(answer, Answer)
    assert answer.adaptation_report.steps == [Step.model_validate(STEP)]
    assert answer.timings.adapt_seconds == 0.5
    assert json.loads(script.requests[0].content) == {
        "document": "a document",
        "query": "a question",
        "adapt": {"optimizer": {"steps": 1}},
        "max_tokens": 3,
        "stream": True,
    }


def test_an_answer_is_the_streams_last_event(kind: type[Sync]) -> None:
    answer = kind(Script(stream(STREAM))).call("answer", "a question", document="a document")
    assert answer.answer == "yes"


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(*[stream(STREAM) for _ in range(3)])
    Async(script).stream()
    monkeypatch.setenv("REFINE_API_KEY", "from-outside")
    Async(script).stream()
    Sync(script).stream()
    sent = [request.headers.get("authorization") for request in script.requests]
    assert sent == [None, "Bearer from-outside", "Bearer key"]


@pytest.mark.parametrize(
    ("status", "name", "error"),
    [
        (422, "invalid_request_error", errors.InvalidRequestError),
        (401, "authentication_error", errors.AuthenticationError),
        (404, "not_found_error", errors.NotFoundError),
        (500, "internal_error", errors.ServerError),
        (504, "timeout_error", errors.RequestTimeoutError),
        (409, "of_tomorrow", errors.InvalidRequestError),
        (502, "of_tomorrow", errors.ServerError),
    ],
)
def test_errors_are_typed_and_not_retried(
    kind: type[Sync], status: int, name: str, error: type[errors.ClientError]
) -> None:
    script = Script(refused(status, name))
    with pytest.raises(error, match="no") as raised:
        kind(script).stream()
    assert type(raised.value) is error
    assert (raised.value.status, raised.value.param, raised.value.code) == (
        status,
        "adapt.optimizer.steps",
        "c",
    )
    assert raised.value.request_id == "r"
    assert len(script.requests) == 1


def test_an_error_within_a_stream_is_typed_too(kind: type[Sync]) -> None:
    body = {"error": {"message": "late", "type": "timeout_error", "param": None, "code": "timeout"}}
    script = Script(stream([STREAM[0], ("error", body)]))
    with pytest.raises(errors.RequestTimeoutError, match="late") as raised:
        kind(script).stream()
    assert (raised.value.status, raised.value.request_id) == (None, "req-7")
    assert len(script.requests) == 1
    with pytest.raises(errors.RequestTimeoutError, match="late"):
        kind(Script(stream([("error", body)]))).call("wait_for_adaptation", "adapt-1")


def test_a_refused_request_is_sent_again_after_retry_after(
    kind: type[Sync], pauses: list[float]
) -> None:
    busy = refused(429, "rate_limit_error", **{"retry-after": "3"})
    starting = refused(503, "unavailable_error", **{"retry-after": "1"})
    script = Script(busy, starting, stream(STREAM))
    assert isinstance(kind(script).stream()[-1], Answer)
    assert pauses == [3.0, 1.0]


@pytest.mark.parametrize(
    ("until", "now", "seconds"),
    [
        ("Wed, 21 Oct 2026 07:28:09 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 9.0),
        ("Wednesday, 21-Oct-26 07:28:09 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 9.0),
        ("Wed Oct 21 07:28:09 2026", "Wed, 21 Oct 2026 07:28:00 GMT", 9.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2020 07:28:00 GMT", "", 0.0),
    ],
)
def test_retry_after_may_be_a_date_by_the_servers_clock(
    kind: type[Sync], pauses: list[float], until: str, now: str, seconds: float
) -> None:
    headers = {"retry-after": until, **({"date": now} if now else {})}
    script = Script(refused(503, "unavailable_error", **headers), stream(STREAM))
    kind(script).stream()
    assert pauses == [seconds]


@pytest.mark.parametrize(
    ("headers", "retry_after"),
    [
        ({}, None),
        ({"retry-after": "1", "x-should-retry": "false"}, None),
        ({"retry-after": "31"}, 31.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "Wed, 41 Oct 2026 07:28:00 GMT"}, None),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:29:00 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            60.0,
        ),
    ],
)
def test_a_refusal_is_final_when_work_may_be_lost_or_the_wait_is_long(
    kind: type[Sync], headers: dict[str, str], retry_after: float | None, pauses: list[float]
) -> None:
    script = Script(refused(503, "unavailable_error", **headers))
    with pytest.raises(errors.UnavailableError) as raised:
        kind(script).stream()
    assert raised.value.retry_after == retry_after
    assert len(script.requests) == 1
    assert pauses == []


@pytest.mark.parametrize("failure", [httpx.ReadTimeout, httpx.ReadError, httpx.WriteError])
def test_a_request_that_may_have_begun_an_adaptation_is_never_sent_again(
    kind: type[Sync], failure: type[httpx.TransportError]
) -> None:
    script = Script(failure)
    with pytest.raises(errors.ConnectionFailedError):
        kind(script).stream()
    assert len(script.requests) == 1


def test_a_cut_stream_is_not_sent_again(kind: type[Sync]) -> None:
    script = Script(stream(STREAM[:2]))
    with pytest.raises(errors.ProtocolError, match="before its last event"):
        kind(script).stream()
    assert len(script.requests) == 1


def test_a_request_is_sent_again_when_no_connection_was_made(
    kind: type[Sync], pauses: list[float]
) -> None:
    script = Script(httpx.ConnectError, httpx.ConnectTimeout, stream(STREAM))
    assert isinstance(kind(script).stream()[-1], Answer)
    assert 0.25 < pauses[0] < pauses[1] <= 1.0


def test_the_number_of_attempts_is_limited(kind: type[Sync], pauses: list[float]) -> None:
    script = Script(*[httpx.ConnectError] * 5)
    with pytest.raises(errors.ConnectionFailedError, match="no server answers"):
        kind(script).stream()
    assert len(script.requests) == 3
    assert len(pauses) == 2


RESOURCE = {
    "id": "adapt-1",
    "model": "m",
    "name": None,
    "pinned": False,
    "status": "ready",
    "created_at": 1.0,
    "expires_at": None,
    "ttl_seconds": 60.0,
    "queue_position": 0,
    "estimate": COST,
    "seconds_left": 0.0,
    "adapt": {"optimizer": {"steps": 1}},
    "document_tokens": 3,
    "overflow": None,
    "citations": [],
    "steps": [STEP],
    "accepted_step": 1,
    "answered_by": "adapted",
    "kept_base_reason": None,
    "stopped": None,
    "first_ntp_loss": 2.0,
    "final_ntp_loss": 1.0,
    "held_out": [{"step": 0, "loss": 2.0, "accuracy": 0.5, "seconds": 0.1}],
    "bytes": 64,
    "in_memory": True,
    "stored": False,
    "error": None,
}


ESTIMATE = {
    "model": "m",
    "document_tokens": 3,
    "query_tokens": None,
    "estimate": COST,
    "queue_position": 1,
    "seconds_left": 9.0,
    "admitted": False,
    "refusal": {
        "status": 429,
        "code": "queue_full",
        "message": "full",
        "option": "--max-queue",
        "retry_after": 3,
    },
    "adaptation": None,
}


def test_a_request_is_estimated_before_it_is_sent(kind: type[Sync]) -> None:
    script = Script(httpx.Response(200, json=ESTIMATE), httpx.Response(200, json=ESTIMATE))
    client = kind(script)
    told = client.call("estimate", "a question", document="a document", max_tokens=3)
    assert isinstance(told, Estimate)
    assert (told.estimate.total_seconds, told.admitted) == (3.0, False)
    assert told.refusal is not None
    assert told.refusal.option == "--max-queue"
    assert client.call("estimate_adaptation", "a document", ttl_seconds=60.0) == told
    assert [json.loads(request.content) for request in script.requests] == [
        {"query": "a question", "document": "a document", "max_tokens": 3},
        {"document": "a document", "ttl_seconds": 60.0},
    ]
    assert {request.url.path for request in script.requests} == {"/v1/estimate"}


def test_an_adaptation_is_made_followed_asked_and_deleted(kind: type[Sync]) -> None:
    queued = httpx.Response(202, json={**RESOURCE, "status": "queued"})
    script = Script(queued)
    made = kind(script).call(
        "adapt", "a document", adapt={"optimizer": {"steps": 1}}, ttl_seconds=60.0
    )
    assert (made.id, made.status) == ("adapt-1", "queued")
    body = {"document": "a document", "adapt": {"optimizer": {"steps": 1}}, "ttl_seconds": 60.0}
    assert json.loads(script.requests[0].content) == body

    ending = [("adaptation.step", MADE), ("adaptation.ready", RESOURCE)]
    script = Script(stream(ending))
    step, adaptation = kind(script).call("follow_adaptation", "adapt/1")
    assert script.requests[0].url.raw_path == b"/v1/adaptations/adapt%2F1/events"
    assert isinstance(step, StepMade)
    assert isinstance(adaptation, Adaptation)
    assert adaptation.steps == [Step.model_validate(STEP)]
    assert kind(Script(stream(ending))).call("wait_for_adaptation", "adapt-1") == adaptation

    listed = httpx.Response(200, json={"data": [RESOURCE]})
    assert kind(Script(listed)).call("adaptations") == [adaptation]
    one = httpx.Response(200, json=RESOURCE)
    assert kind(Script(one)).call("adaptation", "adapt-1") == adaptation

    script = Script(stream(STREAM))
    kind(script).call("answer", "a question", adaptation="adapt-1")
    assert json.loads(script.requests[0].content)["adaptation"] == "adapt-1"

    script = Script(httpx.Response(200, json={"deleted": True}))
    kind(script).call("delete_adaptation", "adapt-1")
    assert script.requests[0].method == "DELETE"


def test_waiting_for_an_adaptation_that_failed_raises(kind: type[Sync]) -> None:
    error = {"message": "too long", "type": "t", "param": "document", "code": "document_too_long"}
    failed = stream([("adaptation.failed", {**RESOURCE, "status": "failed", "error": error})])
    with pytest.raises(errors.AdaptationFailedError, match="too long") as raised:
        kind(Script(failed)).call("wait_for_adaptation", "adapt-1")
    assert (raised.value.code, raised.value.param) == ("document_too_long", "document")
    cancelled = stream([("adaptation.cancelled", {**RESOURCE, "status": "cancelled"})])
    with pytest.raises(errors.AdaptationFailedError, match="adapt-1 was cancelled"):
        kind(Script(cancelled)).call("wait_for_adaptation", "adapt-1")
    with pytest.raises(errors.ProtocolError, match="before its last event"):
        kind(Script(stream([STREAM[0]]))).call("wait_for_adaptation", "adapt-1")


def test_a_deletion_is_not_repeated_and_a_joined_adaptation_is(kind: type[Sync]) -> None:
    script = Script(httpx.ReadError)
    with pytest.raises(errors.ConnectionFailedError):
        kind(script).call("delete_adaptation", "adapt-1")
    script = Script(httpx.ReadError, httpx.Response(202, json=RESOURCE))
    assert kind(script).call("adapt", "a document").id == "adapt-1"
    assert script.requests[0].content == script.requests[1].content


def test_texts_are_tokenised_and_detokenised(kind: type[Sync]) -> None:
    script = Script(httpx.Response(200, json={"tokens": [5, 7], "count": 2}))
    assert kind(script).call("tokenize", "a b") == [5, 7]
    assert json.loads(script.requests[0].content) == {"prompt": "a b", "add_special_tokens": False}
    script = Script(httpx.Response(200, json={"prompt": "a b"}))
    assert kind(script).call("detokenize", [5, 7]) == "a b"
    assert json.loads(script.requests[0].content) == {"tokens": [5, 7]}


def test_readiness_is_waited_for(kind: type[Sync], pauses: list[float]) -> None:
    script = Script(httpx.ConnectError, httpx.Response(503), httpx.Response(200))
    waited = kind(script).call("wait_until_ready", 0.1)
    assert len(waited) == 2
    assert pauses == [0.1, 0.1]


def test_a_request_that_only_reads_is_sent_again(kind: type[Sync]) -> None:
    version = httpx.Response(200, json={"version": "1.2"})
    script = Script(httpx.ReadTimeout, httpx.ReadError, version)
    assert kind(script).call("version").version == "1.2"


def test_a_response_of_another_server_is_a_protocol_error(kind: type[Sync]) -> None:
    for reply in (httpx.Response(200, text="<html>"), httpx.Response(200, json={"data": [{}]})):
        with pytest.raises(errors.ProtocolError, match="does not answer like"):
            kind(Script(reply)).call("models")
    with pytest.raises(errors.ProtocolError, match="does not answer like"):
        kind(Script(stream([("answer.delta", {"txt": "?"})]))).stream()
    with pytest.raises(errors.ServerError, match="502 Bad Gateway"):
        kind(Script(httpx.Response(502, text="<html>"))).stream()
