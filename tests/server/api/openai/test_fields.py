"""Fields that popular clients send: taken where they change nothing, otherwise refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.api.openai.compatibility import NEUTRAL
from refine_server.server.api.openai.messages import ChatMessage, FileContent, TextPart
from refine_server.server.api.openai.requests import ChatBody, CompletionBody
from refine_server.server.api.openai.responses_api.input import InputFile, InputMessage
from refine_server.server.api.openai.responses_api.request import ResponsesBody
from refine_server.ttt.interface.strict import StrictModel

TEXT: dict[str, Any] = {"prompt": "x"}
HELLO = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"messages": [HELLO]}
DOCS = Path(__file__).parents[4] / "docs" / "openai.md"


def post(client: TestClient, body: dict[str, Any]) -> Any:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return client.post(path, json=body)


VLLM = {
    "top_k": -1,
    "min_p": 0,
    "typical_p": 1.0,
    "repetition_penalty": 1,
    "length_penalty": 1.0,
    "min_tokens": 0,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "stop_token_ids": [],
    "bad_words": [],
    "use_beam_search": False,
    "truncate_prompt_tokens": None,
    "prompt_logprobs": None,
}
"""Options of vLLM with their defaults, as tools send them that list all of them."""

OPENAI = {
    "response_format": {"type": "text"},
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "store": False,
    "metadata": {"session": "a"},
    "user": "u",
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "max_tokens": 16.0,
    "seed": None,
}


@pytest.mark.parametrize(
    "body",
    [
        {**TEXT, **VLLM},
        {**CHAT, **VLLM},
        {**TEXT, **OPENAI, "best_of": 1, "suffix": None},
        {**CHAT, **OPENAI, "parallel_tool_calls": True, "tools": [], "tool_choice": "none"},
        {**CHAT, "reasoning_effort": "low", "verbosity": "low", "modalities": ["text"]},
        {**CHAT, "logprobs": False, "top_logprobs": 0, "n": 1.0, "stop": []},
        {**CHAT, "add_generation_prompt": True, "continue_final_message": False, "echo": False},
        {**CHAT, "chat_template": None, "chat_template_kwargs": {}},
    ],
)
def test_a_field_that_changes_nothing_is_taken(client: TestClient, body: dict[str, Any]) -> None:
    response = post(client, body)
    assert response.status_code == 200, response.text
    plain = TEXT if "prompt" in body else CHAT
    shorter = {**plain, "max_tokens": body["max_tokens"]} if "max_tokens" in body else plain
    assert response.json()["choices"] == post(client, shorter).json()["choices"]


SAID = {"role": "assistant"}


@pytest.mark.parametrize(
    "message",
    [
        {**HELLO, "type": "message"},
        {**HELLO, "name": "bob"},
        {**HELLO, "cache_control": {"type": "ephemeral"}},
        {**HELLO, "id": "msg_1", "status": "completed"},
        {"role": "user", "content": [{"type": "text", "text": "hello",
                                      "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "text", "text": "hel", "annotations": [], "id": "1"},
                                     {"type": "text", "text": "lo", "index": 0}]},
    ],
)  # fmt: skip
def test_what_clients_add_to_a_message_is_taken(
    client: TestClient, message: dict[str, Any]
) -> None:
    plain = client.post("/tokenize", json={"messages": [HELLO]}).json()["tokens"]
    assert client.post("/tokenize", json={"messages": [message]}).json()["tokens"] == plain


@pytest.mark.parametrize(
    "message",
    [
        SAID,
        {**SAID, "content": None},
        {**SAID, "content": ""},
        {**SAID, "content": []},
        {**SAID, "content": None, "reasoning_content": "thoughts", "refusal": None},
        {**SAID, "reasoning": "thoughts", "reasoning_details": [{"text": "thoughts"}]},
        {**SAID, "thinking_blocks": [], "provider_specific_fields": {}, "tool_calls": []},
        {**SAID, "content": "", "function_call": None, "audio": None, "annotations": []},
    ],
)
def test_an_assistant_may_have_said_nothing(client: TestClient, message: dict[str, Any]) -> None:
    body = {"messages": [HELLO, message, HELLO]}
    empty = {"messages": [HELLO, {**SAID, "content": ""}, HELLO]}
    response = client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    assert response.json() == client.post("/tokenize", json=empty).json()
    assert post(client, body).status_code == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "system"}, "messages.0.content"),
        ({**HELLO, "type": "function_call"}, "messages.0.type"),
        ({**HELLO, "colour": 1}, "messages.0.colour"),
        ({**SAID, "tool_calls": [{"id": "c"}]}, "messages.0.tool_calls"),
        ({**SAID, "content": "a", "prefix": True}, "messages.0.prefix"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "colour": 1}]},
         "messages.0.content.0.colour"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "annotations": [1]}]},
         "messages.0.content.0.annotations"),
    ],
)  # fmt: skip
def test_what_would_change_a_message_is_refused(
    client: TestClient, message: dict[str, Any], param: str
) -> None:
    for path in ("/v1/chat/completions", "/tokenize"):
        response = client.post(path, json={"messages": [message]})
        assert response.status_code == 422
        assert response.json()["error"]["param"] == param


OTHER = {
    "top_k": 40,
    "min_p": 0.05,
    "min_tokens": 4,
    "repetition_penalty": 1.1,
    "skip_special_tokens": False,
    "stop_token_ids": [2],
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "use_beam_search": True,
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("body", [TEXT, CHAT])
def test_what_would_change_the_answer_is_refused_with_the_reason(
    client: TestClient, name: str, body: dict[str, Any]
) -> None:
    response = post(client, {**body, name: OTHER[name]})
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == name
    assert error["message"] == f"{name}: is not supported by this server: {NEUTRAL[name].reason}"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_on_tokens_is_named_as_it_was_sent(client: TestClient, field: str) -> None:
    response = post(client, {**CHAT, field: 5_000_000})
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(
    "model",
    [CompletionBody, ChatBody, ChatMessage, TextPart, FileContent, ResponsesBody, InputMessage,
     InputFile],
)  # fmt: skip
def test_the_documentation_has_every_field(model: type[StrictModel]) -> None:
    table = DOCS.read_text(encoding="utf-8").partition("## Fields")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([a-z_]+)`", table))
    assert set(model.model_fields) - documented == set()


ROUTES = {
    "completions": ("/v1/completions", TEXT),
    "chats": ("/v1/chat/completions", CHAT),
    "responses": ("/v1/responses", {"input": "hello"}),
}


NEUTRAL_TABLE = "Taken with the neutral value alone"


def rows_of(title: str) -> list[tuple[list[str], list[str], list[Any]]]:
    """Return the rows of a table of fields: names, routes and neutral values."""
    found = []
    table = DOCS.read_text(encoding="utf-8").partition(f"{title}:\n\n")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        names, of, third, *_ = (cell.strip() for cell in row.strip("|").split("|"))
        routes = list(ROUTES) if of == "both" else [route for route in ROUTES if route in of]
        texts = third.split(",") if title == NEUTRAL_TABLE and third else []
        values = [json.loads(text.strip(" `")) for text in texts]
        found.append((re.findall(r"`(.+?)`", names), routes, values))
    assert len(found) > 5
    return found


def test_the_documentation_says_which_fields_are_taken(client: TestClient) -> None:
    for names, routes, _ in rows_of("Taken, without effect"):
        for route in routes:
            path, body = ROUTES[route]
            for value in ("x", {"a": [1]}, None):
                sent = body | dict.fromkeys(names, value)
                assert client.post(path, json=sent).is_success, (route, names)


def test_the_documentation_says_what_is_neutral_and_nothing_else_is(client: TestClient) -> None:
    for names, routes, values in rows_of(NEUTRAL_TABLE):
        of_each = (
            [[value] for value in values] if len(values) == len(names) else [values] * len(names)
        )
        for route in routes:
            path, body = ROUTES[route]
            for name, neutral in zip(names, of_each, strict=True):
                for value in (*neutral, None):
                    assert client.post(path, json={**body, name: value}).is_success, (route, name)
                for value in ("x", [5], *(int(v) for v in neutral if isinstance(v, bool))):
                    error = client.post(path, json={**body, name: value}).json()["error"]
                    assert "is not supported by this server" in error["message"], (route, name)
