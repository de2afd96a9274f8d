import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from refine_server.clients import sse
from refine_server.ttt.interface.errors import RequestError
from support.fake_backend import FakeBackend, Script

ASKED = [{"role": "user", "content": "who"}]
BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 2}}}


def post(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/answers", json={**BODY, **changes})


def stream(client: TestClient, **changes: Any) -> list[tuple[str, dict[str, Any]]]:
    response = post(client, stream=True, **changes)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [(event.event, json.loads(event.data)) for event in sse.parse([response.content])]
    return [(name, data) for name, data in events if name != "request.progress"]


def test_answer_has_the_documented_shape(client: TestClient) -> None:
    response = post(client)
    assert response.status_code == 200
    body = response.json()
    assert body["answer"] == "who"
    assert body["model"] == "fake"
    assert body["base_answer"] is None
    assert body["answered_by"] == "adapted"
    assert body["adaptation_report"]["accepted_step"] == 2
    assert body["kept_base_reason"] is None
    assert set(body["adaptation_report"]["steps"][0]) == {
        *("step", "loss", "ntp_loss", "grpo_loss", "reward_mean", "reward_std", "entropy_mean"),
        *("kl", "attention", "grad_norm", "seconds", "rollout_tokens", "trace"),
    }
    assert body["usage"] == {
        "document_tokens": 5,
        "query_tokens": 1,
        "completion_tokens": 3,
        "rollout_tokens": 20,
    }
    assert set(body["timings"]) == {
        *("queue_seconds", "prefill_seconds", "adapt_seconds", "judge_seconds", "decode_seconds"),
        *("other_seconds", "total_seconds", "time_to_first_token_seconds"),
    }
    assert body["timings"]["decode_seconds"] == 0.03


def test_ids_are_unguessable_and_each_request_has_its_own(client: TestClient) -> None:
    bodies = [post(client).json() for _ in range(3)]
    ids = {body["id"] for body in bodies}
    assert len(ids) == 3
    assert all(body["adaptation"] is None for body in bodies)  # it ended with the request
    assert all(len(name) > 32 for name in ids)


def test_a_rolled_back_adaptation_is_not_called_adapted(client: TestClient, fake: Any) -> None:
    body = post(
        client, document=fake.script("worse", Script(kept_base_reason="no_better_step"))
    ).json()
    assert body["answered_by"] == "kept_base"
    assert body["kept_base_reason"] == "no_better_step"


def test_nan_is_null(client: TestClient, fake: Any) -> None:
    response = post(client, document=fake.script("nan", Script(loss=float("nan"))))
    assert response.json()["adaptation_report"]["steps"][0]["loss"] is None
    assert "NaN" not in response.text


def test_a_stream_has_every_event_in_order_and_ends_with_the_response(client: TestClient) -> None:
    events = stream(client, compare_base=True)
    assert [name for name, _ in events] == [
        *("request.accepted", "document.reading", "document.reading", "answer.base"),
        *("adaptation.started", "adaptation.step", "adaptation.step"),
        *("answer.delta", "answer.delta", "answer.delta", "answer.completed"),
    ]
    assert events[3][1] == {"text": "base says no"}
    assert [data["step"] for _, data in events[5:7]] == [1, 2]
    assert "".join(data["text"] for name, data in events if name == "answer.delta") == "who"
    whole = post(client, compare_base=True).json()
    assert set(events[-1][1]) == set(whole)
    assert events[-1][1]["adaptation_report"]["steps"] == whole["adaptation_report"]["steps"]


def test_of_two_requests_at_once_the_second_is_told_its_place_in_the_queue(
    live: Callable[..., str], fake: FakeBackend, wait_for: Callable[..., None]
) -> None:
    url = live(max_active=1)
    with httpx.Client(base_url=url, timeout=30) as client:
        held = {**BODY, "document": fake.hold("held text"), "stream": True}
        with client.stream("POST", "/v1/answers", json=held) as first:
            wait_for(lambda: fake.turns)
            with client.stream("POST", "/v1/answers", json={**BODY, "stream": True}) as second:
                lines = second.iter_lines()
                places = [place_told(lines, "request.accepted")]
                fake.gate.set()
                places.append(place_told(lines, "request.queued"))
                assert "event: answer.completed" in lines
            assert place_told(first.iter_lines(), "request.accepted") == 0
    assert places == [1, 0]


def place_told(lines: Iterator[str], event: str) -> int:
    """Read a stream's lines up to an event; return the place in the queue that it tells."""
    assert f"event: {event}" in lines  # reads up to it
    place: int = json.loads(next(lines).removeprefix("data: "))["queue_position"]
    return place


def test_an_error_in_a_stream_is_its_final_event(client: TestClient, fake: Any) -> None:
    events = stream(client, document=fake.fail("crash"))
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(events)


def test_the_loop_may_refuse_after_the_checks(client: TestClient, fake: Any) -> None:
    unfit = RequestError("query is unfit", "query", "unfit")
    response = post(client, document=fake.fail("refused", unfit))
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "query"


def test_an_internal_error_reveals_nothing_and_affects_no_other_request(
    client: TestClient, fake: Any
) -> None:
    response = post(client, document=fake.fail("crash"))
    assert response.status_code == 500
    assert response.json() == {
        "error": {
            "message": "Internal error. The server's log has the details, under the id in "
            "x-request-id.",
            "type": "internal_error",
            "param": None,
            "code": "internal_error",
        }
    }
    assert post(client).status_code == 200


@pytest.mark.parametrize("stop", ["x", ["x", "y"], []])
def test_stop_is_a_string_or_a_list(client: TestClient, stop: object) -> None:
    assert post(client, stop=stop).status_code == 200


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"document": ""}, "document", "invalid_value"),
    ({"document": " \n\t "}, "document", "invalid_value"),
    ({"document": 5}, "document", "invalid_value"),
    ({"document": None}, "document", "invalid_value"),
    ({"query": ""}, "query", "invalid_value"),
    ({"query": "  "}, "query", "invalid_value"),
    ({"query": ["who"]}, "query", "invalid_value"),
    ({"colour": "red"}, "colour", "unknown_field"),
    ({"adapt": {"colour": "red"}}, "adapt.colour", "unknown_field"),
    ({"adapt": {"optimizer": {"steps": -1}}}, "adapt.optimizer.steps", "invalid_value"),
    ({"adapt": {"optimizer": {"steps": "many"}}}, "adapt.optimizer.steps", "invalid_value"),
    ({"adapt": {"optimizer": {"steps": "16"}}}, "adapt.optimizer.steps", "invalid_value"),
    ({"adapt": {"optimizer": {"steps": True}}}, "adapt.optimizer.steps", "invalid_value"),
    ({"adapt": {"objective": "magic"}}, "adapt.objective", "invalid_value"),
    ({"adapt": {"optimizer": {"steps": 0}}}, "adapt.optimizer.steps", "invalid_value"),
    (
        {"adapt": {"rollouts": {"positions": 128, "per_position": 32}}},
        "adapt.rollouts",
        "invalid_value",
    ),
    ({"adapt": 3}, "adapt", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"stop": ["x"] * 17}, "stop", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_value"),
    ({"stop": ["ok", ""]}, "stop.1", "invalid_value"),
    ({"model": 5}, "model", "invalid_value"),
]


@pytest.mark.parametrize(("changes", "param", "code"), BAD_FIELDS)
@pytest.mark.parametrize("streamed", [False, True])
def test_bad_fields_are_named(
    client: TestClient, changes: dict[str, Any], param: str, code: str, streamed: bool
) -> None:
    response = post(client, **{"stream": streamed, **changes})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (422, param, code)
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


def test_a_missing_field_is_named(client: TestClient) -> None:
    response = client.post("/v1/answers", json={"document": "x"})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "query"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_long_document_is_413_before_a_stream_begins(client: TestClient, streamed: bool) -> None:
    response = post(client, document="word " * 200, stream=streamed)
    error = response.json()["error"]
    assert response.status_code == 413
    assert (error["param"], error["code"]) == ("document", "document_too_long")


def test_an_unknown_model_is_404(client: TestClient) -> None:
    response = post(client, model="gpt-9")
    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert post(client, model="fake").status_code == 200


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/answers", {**BODY, "max_tokens": 8192}),
        ("/v1/completions", {"prompt": "who", "max_tokens": 8192}),
        ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 8192}),
        ("/v1/chat/completions", {"messages": ASKED, "max_completion_tokens": 8192}),
    ],
)
def test_answers_of_more_than_4096_tokens_are_allowed_by_a_setting(
    make_client: Callable[..., TestClient], path: str, body: dict[str, Any], allowed: bool
) -> None:
    response = make_client(max_tokens=10_000 if allowed else 4096).post(path, json=body)
    assert response.status_code == (200 if allowed else 422), response.text
    if not allowed:
        assert "at most 4096" in response.json()["error"]["message"]


def test_max_tokens_is_bounded_by_the_server(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_tokens=2)
    assert post(client).json()["answer"] == "wh"
    response = post(client, max_tokens=3)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"document": "x",}', 400, "invalid_json"),
        (b"\xff{}", 400, "invalid_json"),
        (b"[" * 30_000, 400, "invalid_json"),
        (b"[" * 100_000, 413, "body_too_large"),
        (b"[]", 422, "invalid_body"),
        (b'"text"', 422, "invalid_body"),
        (b"", 422, "invalid_body"),
    ],
)
def test_bodies_that_are_no_json_object(
    client: TestClient, content: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/v1/answers", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_body_over_the_limit_is_413(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_body_bytes=100)
    whole = post(client, document="x" * 200)

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10

    chunked = client.post(
        "/v1/answers", content=pieces(), headers={"content-type": "application/json"}
    )
    for response in (whole, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
    assert post(client, adapt={}).status_code == 200


def test_other_paths_and_methods(client: TestClient) -> None:
    missing, wrong = client.get("/v2/answers"), client.get("/v1/answers")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["document", "query", "adapt", "max_tokens", "temperature", "top_p", "stop", "seed", "model"]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(FIELDS | st.text(max_size=5), json_values, max_size=4))
def test_random_bodies_get_an_answer_or_a_named_error(
    client: TestClient, changes: dict[str, Any]
) -> None:
    response = client.post(
        "/v1/answers",
        content=json.dumps({**BODY, **changes}),
        headers={"content-type": "application/json"},
    )
    if response.status_code == 200:
        json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    else:
        assert response.status_code in {400, 404, 413, 422}
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
