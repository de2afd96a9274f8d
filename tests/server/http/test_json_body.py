"""How bodies are read on every route: invalid Unicode, null fields and whole floats."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from refine_server.server.http.errors import ApiError
from refine_server.server.http.json_body import SCHEMAS, parse_json

HALF = "\ud83d"
"""Half of an emoji: what JavaScript's ``text.slice(0, n)`` leaves of one."""
ASK = {"document": "a", "query": "b"}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}

PLACES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": HALF}, "prompt"),
    ("/v1/completions", {"prompt": ["a", f"b{HALF}c"]}, "prompt.1"),
    ("/v1/completions", {"prompt": "a", "model": HALF}, "model"),
    ("/v1/completions", {"prompt": "a", "stop": ["x", HALF]}, "stop.1"),
    ("/v1/completions", {"prompt": "a", "stop": HALF}, "stop"),
    ("/v1/completions", {"prompt": "a", "suffix": HALF}, "suffix"),
    ("/v1/completions", {"prompt": "a", "user": HALF}, "user"),
    ("/v1/completions", {"prompt": "a", "metadata": {"a": {"b": HALF}}}, "metadata.a.b"),
    ("/v1/completions", {"prompt": "a", "ttt": {"document": HALF}}, "ttt.document"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": HALF}]},
     "messages.0.content"),
    ("/v1/chat/completions",
     {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
     "messages.0.content.0.text"),
    ("/v1/chat/completions", {"messages": [{"role": HALF, "content": "a"}]}, "messages.0.role"),
    ("/v1/chat/completions", {**CHAT, "no_such_field": [HALF]}, "no_such_field.0"),
    ("/v1/responses", {"input": [{"role": "user", "content": HALF}]}, "input.0.content"),
    ("/v1/responses", {"input": "a", "text": {"format": {"type": HALF}}}, "text.format.type"),
    ("/v1/responses", {"input": "a", "metadata": {"a": HALF}}, "metadata.a"),
    ("/v1/batches", {"input_file_id": HALF}, "input_file_id"),
    ("/v1/answers", {"query": "b", "document": {"file_id": HALF}}, "document.file_id"),
    ("/v1/answers", {**ASK, "query": HALF}, "query"),
    ("/v1/answers", {**ASK, "document": HALF}, "document"),
    ("/v1/answers", {**ASK, "context": HALF}, "context"),
    ("/v1/answers", {"query": "b", "adaptation": HALF}, "adaptation"),
    ("/v1/answers", {**ASK, "evidence": {"by": "bm25", "words": HALF}}, "evidence.words"),
    ("/v1/answers", {**ASK, "adapt": {"on": {"kind": HALF}}}, "adapt.on.kind"),
    ("/v1/adaptations", {"document": HALF}, "document"),
    ("/v1/adaptations", {"document": "a", "adapt": {"guard": HALF}}, "adapt.guard"),
    ("/tokenize", {"prompt": HALF}, "prompt"),
    ("/tokenize", {"messages": [{"role": "user", "content": HALF}]}, "messages.0.content"),
    ("/detokenize", {"tokens": [1], "model": HALF}, "model"),
]  # fmt: skip


def error_of(client: TestClient, path: str, content: bytes) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    response = client.post(path, content=content, headers=headers)
    assert response.status_code == 422, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(("path", "body", "param"), PLACES)
def test_half_of_a_character_is_refused_by_field(
    client: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    escaped = json.dumps(body).encode()
    raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    not_utf8 = raw.replace(HALF.encode("utf-8", "surrogatepass"), b"\xff")
    for content in (escaped, raw, not_utf8):
        error = error_of(client, path, content)
        assert (error["param"], error["code"]) == (param, "invalid_value")
        assert error["message"].startswith(f"{param}: is not valid Unicode text")


@pytest.mark.parametrize("half", ["\\ud800", "\\uDBFF", "\\udc00", "\\udfff", "\\ude00\\ud83d"])
def test_every_half_is_refused_in_either_order(client: TestClient, half: str) -> None:
    assert error_of(client, "/tokenize", f'{{"prompt": "a{half}"}}'.encode())["param"] == "prompt"


def test_whole_characters_are_taken_however_they_are_written(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    expected = client.post("/tokenize", json={"prompt": "\U0001f980"}).json()["count"]
    for crab in ("\\ud83e\\udd80", "\\uD83E\\uDD80", "\U0001f980"):
        content = f'\ufeff{{"prompt": "{crab}"}}'.encode()
        response = client.post("/tokenize", content=content, headers=headers)
        assert (response.status_code, response.json()["count"]) == (200, expected)


def test_a_fields_name_can_be_invalid_too(client: TestClient) -> None:
    error = error_of(client, "/v1/answers", b'{"document": "x", "query": "y", "\\ud800": 1}')
    assert (error["param"], error["code"]) == ("body", "invalid_body")
    error = error_of(client, "/v1/answers", b'{"document": "x", "adapt": {"a": 1, "\xff": 1}}')
    assert (error["param"], error["code"]) == ("adapt", "invalid_body")


@pytest.mark.parametrize("path", ["/v1/answers", "/v1/completions", "/v1/models"])
@pytest.mark.parametrize(
    "name", ["x-request-id", "authorization", "x-api-key", "content-type", "accept", "origin"]
)
@pytest.mark.parametrize("value", [b"\xed\xa0\xbd", b"Bearer \xed\xa0\xbd", b"\xff", b"\xc3\xa9"])
def test_no_header_causes_a_server_error(
    client: TestClient, path: str, name: str, value: bytes
) -> None:
    method, body = ("GET", b"") if path == "/v1/models" else ("POST", b'{"prompt": "a"}')
    response = client.request(method, path, content=body, headers={name.encode(): value})
    assert response.status_code < 500
    assert response.headers["x-request-id"].isascii()


@pytest.mark.parametrize("path", ["/v1/models/%ED%A0%BD", "/v1/adaptations/%FF", "/%ED%A0%BD"])
def test_a_path_may_hold_any_bytes(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.delete(path).status_code in (404, 405)


# -- null -----------------------------------------------------------------------------------------

NULLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/answers", {**ASK, "temperature": None, "top_p": None, "stop": None, "seed": None}),
    ("/v1/answers", {**ASK, "adapt": None, "evidence": None, "context": None, "adaptation": None}),
    ("/v1/answers", {**ASK, "stream": None, "compare_base": None, "priority": None, "model": None}),
    ("/v1/answers", {**ASK, "adapt": {"on": None, "rollouts": None, "guard": None, "seed": None}}),
    ("/v1/answers", {**ASK, "adapt": {"optimizer": {"steps": None, "learning_rate": None}}}),
    ("/v1/answers", {**ASK, "evidence": {"by": "bm25", "count": None, "tokens": None}}),
    ("/v1/adaptations", {"document": "a", "adapt": None, "ttl_seconds": None, "priority": None}),
    ("/v1/completions", {"prompt": "a", "ignore_eos": None, "n": None, "logit_bias": None}),
    ("/v1/completions", {"prompt": "a", "ttt": {"document": "b", "adapt": None}}),
    ("/v1/responses", {"input": "a", "instructions": None, "text": None, "metadata": None}),
    ("/v1/responses", {"input": "a", "text": {"format": None, "verbosity": None}, "include": None}),
    ("/v1/responses", {"input": [{"role": "user", "content": "a", "type": None, "id": None}]}),
    ("/v1/chat/completions", {**CHAT, "tools": None, "ttt": {"document": None, "adapt": None}}),
    ("/tokenize", {"prompt": "a", "messages": None, "add_special_tokens": None}),
]


@pytest.mark.parametrize(("path", "body"), NULLS)
def test_null_is_the_same_as_leaving_an_optional_field_out(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    assert client.post(path, json=body).is_success


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/answers", {"document": "a", "query": None}, "query"),
        ("/v1/adaptations", {"document": None}, "document"),
        ("/v1/chat/completions", {"messages": None}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": None, "content": "a"}]}, "messages.0.role"),
        ("/v1/chat/completions", {"messages": [None]}, "messages.0"),
        ("/v1/completions", {"prompt": [None]}, "prompt"),
    ],
)
def test_null_is_no_value_of_a_required_field(
    client: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (422, param)


def test_null_keeps_what_a_preset_says(client: TestClient) -> None:
    on = {"kind": "document"}
    adapt = {"preset": "paper", "on": on, "guard": None, "optimizer": {"steps": None}}
    created = client.post("/v1/adaptations", json={"document": "a b c", "adapt": adapt}).json()
    assert created["adapt"]["guard"] == "none"
    assert created["adapt"]["optimizer"]["steps"] == 1


@pytest.mark.parametrize("item", [{"const": None}, {"enum": [{"a": None}]}, {"a": [{"b": None}]}])
@pytest.mark.parametrize(("above", "field"), SCHEMAS)
def test_null_is_a_value_like_others_in_a_schema(above: str, field: str, item: Any) -> None:
    body = {"left_out": None, "kept": {above: {field: item, "strict": None}}}
    assert parse_json(json.dumps([body]).encode()) == [{"kept": {above: {field: item}}}]
    assert parse_json(json.dumps({above: {field: None}}).encode()) == {above: {}}


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/answers", {**ASK, "max_tokens": 16.0, "seed": 3.0, "priority": -0.0}),
        (
            "/v1/answers",
            {**ASK, "adapt": {"optimizer": {"steps": 2.0}, "rollouts": {"tokens": 5.0}}},
        ),
        ("/v1/completions", {"prompt": [[104.0, 105.0]], "n": 2.0, "logprobs": 1.0}),
        ("/v1/completions", {"prompt": [104, 105.0], "max_tokens": 1e1, "seed": -1.0}),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 4.0, "top_p": 1}),
        ("/detokenize", {"tokens": [104.0]}),
    ],
)
def test_a_whole_number_is_an_integer_however_it_is_written(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    assert client.post(path, json=body).is_success


@pytest.mark.parametrize("seed", ["1.5", "1e300", "9.3e18", "true", '"1"', "NaN", "1e999"])
def test_other_numbers_are_no_integers(client: TestClient, seed: str) -> None:
    content = f'{{"document": "a", "query": "b", "seed": {seed}}}'.encode()
    assert error_of(client, "/v1/answers", content)["param"] == "seed"


# -- unions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]},
         "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": {"type": "text"}}]},
         "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages.0.content.0.text"),
        ("/v1/chat/completions",
         {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
         "messages.0.content.0.text"),
        ("/v1/answers", {**ASK, "adapt": {"on": {"kind": "spans", "tokens": 1}}},
         "adapt.on.tokens"),
        ("/v1/answers", {**ASK, "adapt": {"on": {"kind": "spans", "spans": 1}}}, "adapt.on.spans"),
        ("/v1/answers", {**ASK, "evidence": {"by": "spans"}}, "evidence.spans"),
        ("/v1/answers", {**ASK, "evidence": {"by": "spans", "spans": [{"start": -1, "end": 2}]}},
         "evidence.spans.0.start"),
        ("/v1/answers", {**ASK, "evidence": {"by": "magic"}}, "evidence.by"),
        ("/v1/answers", {**ASK, "evidence": {"count": 1}}, "evidence.by"),
        ("/v1/answers", {**ASK, "stop": ["a", 1]}, "stop.1"),
        ("/v1/answers", {**ASK, "stop": ""}, "stop"),
    ],
)  # fmt: skip
def test_the_param_of_an_error_is_a_path_in_the_request(
    client: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


# -- any value ------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_nothing_else_of_a_body_changes(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text.encode()) == without_nulls(value)


@given(VALUES, VALUES)
def test_an_invalid_text_is_found_anywhere(before: Any, after: Any) -> None:
    body = {"before": before, "list": [after, {"here": "a" + HALF}], "after": after}
    with pytest.raises(ApiError) as error:
        parse_json(json.dumps(body).encode())
    assert error.value.body.error.param == "list.1.here"


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
