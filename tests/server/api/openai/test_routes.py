"""The OpenAI-compatible routes on a scripted model: what they take, refuse, stream and cancel."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from refine_server.clients.sse import parse
from support.fake_backend import Script

HELLO = [{"role": "user", "content": "hello"}]


def stream(client: Any, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    """Events of a stream by name, their data parsed where they are JSON."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = list(parse(response.iter_bytes()))
    return [(e.event, e.data if e.data == "[DONE]" else json.loads(e.data)) for e in events]


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_choices_come_in_order_with_their_prompts(client: TestClient) -> None:
    body = {"model": "fake", "prompt": ["one", "two"], "n": 2, "max_tokens": 2, "logprobs": 1}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200
    completion = response.json()
    assert [(c["index"], c["text"]) for c in completion["choices"]] == [
        (0, "on"),
        (1, "on"),
        (2, "tw"),
        (3, "tw"),
    ]
    assert completion["usage"] == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}
    assert completion["choices"][0]["logprobs"] == {
        "tokens": ["o", "n"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"o": -0.5}, {"n": -0.5}],
        "text_offset": [0, 1],
    }
    assert "ttt" not in completion


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [104, 105], [[104, 105]]])
def test_prompts_are_texts_or_tokens(client: TestClient, prompt: Any) -> None:
    body = {"prompt": prompt, "echo": True, "max_tokens": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("hih", None, "stop")


def test_offsets_count_characters_where_tokens_are_cut_bytes(client: TestClient) -> None:
    body = {"prompt": "ü.", "echo": True, "max_tokens": 0, "logprobs": 0}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "ü."
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xbc", "."]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]


def test_a_completion_stream_ends_with_usage_and_done(client: TestClient) -> None:
    body = {"prompt": "ab", "echo": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = stream(client, "/v1/completions", body)
    assert done == ("message", "[DONE]")
    assert (last[1]["choices"], last[1]["usage"]["total_tokens"]) == ([], 4)
    choices = [chunk["choices"][0] for _, chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "abab"
    assert [choice["finish_reason"] for choice in choices] == [None] * 3 + ["stop"]
    assert {chunk["usage"] for _, chunk in chunks} == {None}
    assert len({chunk["id"] for _, chunk in chunks}) == 1


def test_a_chat_stream_begins_with_the_role(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": HELLO, "n": 2, "stream_options": options}
    *chunks, last, done = stream(client, "/v1/chat/completions", body)
    assert done == ("message", "[DONE]")
    choices = [chunk["choices"][0] for _, chunk in chunks]
    for index in (0, 1):
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}
        # The plain prompt of a model without a chat template begins so.
        assert "".join(delta.get("content", "") for delta in deltas[1:]) == "Question:"
    counts = [chunk["usage"]["completion_tokens"] for _, chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last[1]["usage"]["completion_tokens"] == 18


def test_a_chat_returns_log_probabilities_on_request(client: TestClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "Be"}, {"role": "user", "content": parts}]
    body = {"messages": messages, "logprobs": True, "max_completion_tokens": 1, "max_tokens": 2}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "B", "refusal": None}
    assert choice["logprobs"]["content"] == [
        {"token": "B", "logprob": -0.5, "bytes": [66], "top_logprobs": []}
    ]


TEXT: dict[str, Any] = {"prompt": "x"}
CHAT: dict[str, Any] = {"messages": HELLO}


@pytest.mark.parametrize(
    "body",
    [
        {**TEXT, "user": "u", "best_of": 1, "suffix": "", "logit_bias": {}, "presence_penalty": 0},
        {**TEXT, "stop": None, "temperature": None, "top_p": None, "seed": -1, "stream": None},
        {**CHAT, "store": True, "metadata": {"a": "b"}, "tools": [], "tool_choice": "auto"},
        {**CHAT, "response_format": {"type": "text"}, "modalities": ["text"], "user": None},
        {"messages": [{**HELLO[0], "tool_calls": None, "name": "n", "refusal": None}]},
    ],
)
def test_neutral_values_are_accepted(client: TestClient, body: dict[str, Any]) -> None:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    assert client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({**TEXT, "best_of": 2}, "best_of", "not support"),
        ({**TEXT, "suffix": "y"}, "suffix", "not support"),
        ({**TEXT, "colour": 1}, "colour", "no such field"),
        ({**TEXT, "logprobs": 21}, "logprobs", "20"),
        ({**TEXT, "max_tokens": 65}, "max_tokens", "at most 64"),
        ({**TEXT, "n": 17}, "n", "16"),
        ({**TEXT, "frequency_penalty": 0.5}, "frequency_penalty", "not support"),
        ({"prompt": []}, "prompt", "must be a string"),
        ({"prompt": [1, "x"]}, "prompt", "must be a string"),
        ({"prompt": ["x"] * 129}, "prompt", "128"),
        ({"prompt": [999]}, "prompt", "token 999"),
        ({}, "prompt", "required"),
        ({**CHAT, "tools": [{"type": "function"}]}, "tools", "not support"),
        ({**CHAT, "response_format": {"type": "grammar"}}, "response_format.type", "json_schema"),
        ({**CHAT, "top_logprobs": 2}, "top_logprobs", "requires logprobs"),
        ({**CHAT, "stream_options": {}}, "stream_options", "requires stream"),
        ({**CHAT, "ttt": {"adapt": {"optimizer": {"steps": 1}}}}, "ttt.adapt", "requires document"),
        ({**CHAT, "ttt": {"document": "a", "adapt": {"optimizer": {"steps": 0}}}},
         "ttt.adapt.optimizer.steps", "1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages.0.content", "only parts of type text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "assistant"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages", "user"),
    ],
)  # fmt: skip
def test_unsupported_requests_are_refused_by_field(
    make_client: Callable[..., TestClient], body: dict[str, Any], param: str, message: str
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    error = error_of(make_client(max_tokens=64).post(path, json=body), 422)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_a_prompt_too_long_has_openais_error_code(client: TestClient) -> None:
    error = error_of(client.post("/v1/completions", json={"prompt": "x" * 300}), 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    body = {"messages": [{"role": "user", "content": "x" * 40_000}]}
    error = error_of(client.post("/v1/chat/completions", json=body), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_an_adaptation_answers_by_its_id_and_a_document_adapts_once(
    client: TestClient, fake: Any
) -> None:
    body = {
        **CHAT,
        "ttt": {"document": "lighthouse at the cape", "adapt": {"optimizer": {"steps": 2}}},
    }
    first = client.post("/v1/chat/completions", json=body).json()
    again = client.post("/v1/chat/completions", json=body).json()
    assert fake.closed.count("lighthouse") == 1
    adaptation = first["ttt"]["adaptation"]
    known = {
        "adaptation": adaptation,
        "answered_by": "adapted",
        "kept_base_reason": None,
        "document_tokens": 22,
        "overflow": None,
    }
    assert first["ttt"].items() >= known.items()
    assert again["ttt"] == first["ttt"]
    by_id = client.post("/v1/completions", json={**TEXT, "model": adaptation}).json()
    assert by_id["model"] == adaptation
    assert by_id["ttt"] == {**known, "citations": [], "quotes": []}
    listed = client.get("/v1/models").json()["data"]
    assert [(m["id"], m["parent"]) for m in listed] == [("fake", None), (adaptation, "fake")]
    assert client.get(f"/v1/models/{adaptation}").json() == listed[1]
    both = {**body, "model": adaptation}
    assert error_of(client.post("/v1/chat/completions", json=both), 422)["param"] == "ttt.document"


@pytest.mark.parametrize("model", ["gpt-4", "adapt-0000"])
def test_an_unknown_model_is_404(client: TestClient, model: str) -> None:
    for response in (
        client.post("/v1/completions", json={**TEXT, "model": model}),
        client.post("/v1/chat/completions", json={**CHAT, "model": model, "stream": True}),
        client.get(f"/v1/models/{model}"),
    ):
        assert error_of(response, 404)["code"] == "model_not_found"


def test_a_bad_document_is_refused_under_its_own_name(client: TestClient) -> None:
    body = {**CHAT, "ttt": {"document": "word " * 200}}
    assert error_of(client.post("/v1/chat/completions", json=body), 413)["param"] == "ttt.document"
    by_query = {"on": {"kind": "query_spans"}}
    body["ttt"] = {"document": "x", "adapt": by_query}
    error = error_of(client.post("/v1/chat/completions", json=body), 422)
    assert error["param"] == "ttt.adapt.on.kind"


def test_a_failed_adaptation_is_not_to_be_retried(client: TestClient, fake: Any) -> None:
    body = {**CHAT, "ttt": {"document": fake.fail("crash"), "adapt": {}}}
    response = client.post("/v1/chat/completions", json=body)
    assert error_of(response, 409)["code"] == "adaptation_failed"
    assert response.headers["x-should-retry"] == "false"
    crashed = client.post("/v1/completions", json={"prompt": "crash"})
    assert error_of(crashed, 500)["code"] == "internal_error"
    assert "x-should-retry" not in crashed.headers  # nothing was adapted: OpenAI's client may retry


def test_an_answer_that_fails_after_adapting_is_not_to_be_retried(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    url = live(request_timeout_seconds=0.5)
    seconds = iter([0.0, 1.0])  # the second step takes longer than the first one promised
    body = {
        "document": fake.script("slow", Script(step=lambda: time.sleep(next(seconds)))),
        "query": "late",
        "adapt": {"optimizer": {"steps": 2}},
        "max_tokens": 1,
    }
    late = httpx.post(f"{url}/v1/answers", json=body)
    assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
    wait_for(lambda: fake.closed == ["late"])
    waited = httpx.post(f"{url}/v1/answers", json={**body, "document": fake.hold("held")})
    assert waited.status_code == 504
    assert "x-should-retry" not in waited.headers


def test_a_stream_that_fails_ends_with_an_error_event(client: TestClient, fake: Any) -> None:
    *chunks, (name, data) = stream(client, "/v1/completions", {"prompt": fake.fail("crash")})
    assert chunks == []
    assert (name, data["error"]["code"]) == ("error", "internal_error")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_cancels_its_completion(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None], streamed: bool
) -> None:
    url = live()
    body = {"prompt": fake.hold("gone"), "stream": streamed}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=body, timeout=0.3)
    assert fake.turns == ["gone"]
    wait_for(lambda: 'endpoint="/v1/completions"' in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    wait_for(lambda: "gone" in fake.closed)
    assert fake.turns == ["gone"]


def test_a_client_that_leaves_while_a_document_is_adapted_to_keeps_nothing_busy(
    live: Callable[..., str], fake: Any, wait_for: Callable[..., None]
) -> None:
    url = live()
    document = fake.hold("left alone")
    body = {
        **CHAT,
        "stream": True,
        "ttt": {"document": document, "adapt": {"optimizer": {"steps": 1}}},
    }
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.3)
    wait_for(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
    fake.gate.set()
    wait_for(lambda: fake.closed == ["left"])  # it is kept for a retry, which joins it
    assert httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": False}).is_success
    wait_for(lambda: fake.closed == ["left", "Question:"])


def test_completions_are_measured(client: TestClient) -> None:
    client.post("/v1/completions", json={"prompt": ["abc", "d"], "max_tokens": 2})
    client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 0, "echo": True})
    metrics = client.get("/metrics").text
    for line in (
        "refine_generated_tokens_total 3.0",
        "refine_decode_seconds_count 1.0",
        'refine_time_to_first_token_seconds_count{answered_by="base"} 1.0',
        "refine_inter_token_seconds_count 2.0",
        "refine_prefill_seconds_count 3.0",
    ):
        assert line in metrics


def test_the_tokenizer_is_served(client: TestClient) -> None:
    body = {"prompt": "hü", "add_special_tokens": False, "return_token_strs": True}
    assert client.post("/tokenize", json=body).json() == {
        "count": 3,
        "max_model_len": 36_864,
        "tokens": [104, 195, 188],
        "token_strs": ["h", "Ã", "¼"],
    }
    chat = client.post("/tokenize", json={"messages": HELLO}).json()["tokens"]
    assert bytes(chat).decode() == "Question: hello\nAnswer:"
    back = client.post("/detokenize", json={"tokens": [104, 195, 188]}).json()
    assert back == {"prompt": "hü"}
    info = client.get("/tokenizer_info").json()
    assert (info["eos_token"], info["chat_template"]) == ("<|end|>", None)
    assert error_of(client.post("/detokenize", json={"tokens": [300]}), 422)["param"] == "tokens"
    assert error_of(client.post("/tokenize", json={}), 422)["param"] == "messages"


def test_many_clients_at_once_get_their_own_answers(live: Callable[..., str]) -> None:
    url = live(max_active=3)
    answers: dict[str, str] = {}

    def ask(name: str) -> None:
        body = {"messages": [{"role": "system", "content": name}, *HELLO]}
        with httpx.Client(base_url=url, timeout=30) as client:
            whole = client.post("/v1/chat/completions", json=body).json()
            streamed = stream(client, "/v1/chat/completions", body)
        parts = [chunk["choices"][0]["delta"] for _, chunk in streamed[:-1]]
        assert whole["choices"][0]["message"]["content"] == "".join(
            part.get("content", "") for part in parts
        )
        answers[name] = whole["choices"][0]["message"]["content"]

    names = [f"client{n}" for n in range(12)]
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: name for name in names}
