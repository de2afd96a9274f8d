"""``/v1/responses``: what it takes, refuses and streams, by httpx and by OpenAI's own client."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from starlette.testclient import TestClient

from refine_server.clients.sse import parse
from support.fake_backend import FakeBackend

PATH = "/v1/responses"
DOCUMENT = (
    "The harbour code is amber. The bakery owner is Tobias Hartley.\n\n"
    "The castle animal is falcon. The garden flower is orchid."
)
QUERY = "What is the castle animal?"
FINE = {"by": "bm25", "count": 1, "tokens": 16}
GREEDY: dict[str, Any] = {"temperature": 0, "max_output_tokens": 8}
ABOUT: dict[str, Any] = {**GREEDY, "ttt": {"document": DOCUMENT, "evidence": FINE}}


def post(url: str, path: str = PATH, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def text_of(response: dict[str, Any]) -> str:
    [item] = response["output"]
    [part] = item["content"]
    text: str = part["text"]
    return text


def streamed(client: Any, url: str = "", **body: Any) -> list[dict[str, Any]]:
    """The data of a stream's events."""
    with client.stream("POST", f"{url}{PATH}", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        events = list(parse(response.iter_bytes()))
    found = [json.loads(event.data) for event in events]
    assert [event.event for event in events] == [data["type"] for data in found]
    assert [data["sequence_number"] for data in found] == list(range(len(found)))
    return found


def upload(url: str) -> dict[str, str]:
    form = {"files": {"file": ("log.txt", DOCUMENT.encode())}, "data": {"purpose": "user_data"}}
    made = httpx.post(f"{url}/v1/files", **form).json()  # type: ignore[arg-type]
    return {"type": "input_file", "file_id": made["id"]}


# -- answers --------------------------------------------------------------------------------------


def test_a_response_is_what_a_chat_answers(tiny_url: str) -> None:
    response = post(tiny_url, input=QUERY, **ABOUT, metadata={"run": "7"}, top_p=1)
    messages = [{"role": "user", "content": QUERY}]
    chat = post(
        tiny_url, "/v1/chat/completions", messages=messages, temperature=0, ttt=ABOUT["ttt"]
    )
    assert text_of(response) == chat["choices"][0]["message"]["content"] == " falcon"
    assert response["ttt"] == chat["ttt"]
    assert response["usage"] == {
        "input_tokens": chat["usage"]["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": chat["usage"]["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": chat["usage"]["total_tokens"],
    }
    assert response["object"] == "response"
    assert (response["status"], response["error"]) == ("completed", None)
    assert response["metadata"] == {"run": "7"}
    assert response["store"] is False
    assert response["id"].startswith("resp_")
    Response.model_validate(response)


@pytest.mark.parametrize(
    "content",
    [
        QUERY,
        [{"type": "input_text", "text": QUERY}],
        [{"type": "input_text", "text": "What is"}, {"type": "input_text", "text": QUERY[7:]}],
    ],
)
@pytest.mark.parametrize("kind", [{}, {"type": "message"}])
def test_input_is_a_text_or_a_list_of_items(
    tiny_url: str, content: Any, kind: dict[str, str]
) -> None:
    item = {**kind, "role": "user", "content": content}
    assert (
        post(tiny_url, input=[item], **ABOUT)["output"][0]["content"]
        == (post(tiny_url, input=QUERY, **ABOUT)["output"][0]["content"])
    )


def test_a_conversation_goes_on_with_what_was_answered(tiny_url: str) -> None:
    first = post(tiny_url, input="hello", **GREEDY)
    turns = [
        {"role": "user", "content": "hello"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        *first["output"],
        {"role": "user", "content": QUERY},
    ]
    second = post(tiny_url, input=turns, instructions="Be brief.", **GREEDY)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": text_of(first)},
        {"role": "user", "content": QUERY},
    ]
    body = {"messages": messages, "temperature": 0, "max_tokens": 8}
    chat = post(tiny_url, "/v1/chat/completions", **body)
    assert text_of(second) == chat["choices"][0]["message"]["content"]
    assert second["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert second["instructions"] == "Be brief."


def test_a_response_that_reaches_its_limit_is_incomplete(tiny_url: str) -> None:
    response = post(tiny_url, input="hello", max_output_tokens=1, ignore_eos=True, seed=1)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 1


def test_files_of_the_input_are_the_document_and_are_cited(tiny_url: str) -> None:
    file = upload(tiny_url)
    text = {"type": "input_text", "text": QUERY}
    asked = [{"role": "user", "content": [file, text]}]
    response = post(tiny_url, input=asked, **GREEDY, ttt={"evidence": FINE})
    assert text_of(response) == " falcon"
    assert response["ttt"]["citations"][0]["text"].startswith("The castle animal")
    assert response["output"][0]["content"][0]["annotations"] == [
        {
            "type": "file_citation",
            "file_id": file["file_id"],
            "filename": "log.txt",
            "index": len(" falcon"),
        }
    ]
    inline = {"type": "input_file", "filename": "log.txt", "file_data": DOCUMENT}
    asked[0]["content"] = [inline, text]
    same = post(tiny_url, input=asked, **GREEDY, ttt={"evidence": FINE})
    assert same["ttt"] == response["ttt"]
    assert same["output"][0]["content"][0]["annotations"] == []


def test_an_adaptation_answers(tiny_url: str) -> None:
    adapt = {"optimizer": {"steps": 1}, "rollouts": {"positions": 2}}
    ttt = {"document": DOCUMENT, "adapt": adapt}
    first = post(tiny_url, input=QUERY, **GREEDY, ttt=ttt)
    kept = first["ttt"]["adaptation"]
    again = post(tiny_url, model=kept, input=QUERY, **GREEDY)
    assert again["model"] == again["ttt"]["adaptation"] == kept
    assert text_of(again) == text_of(first)


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["amber", "coral"]}},
          "required": ["a"], "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
         ['{"a":"amber"}', '{"a":"coral"}']),
        ({"guided_choice": ["amber", "coral"]}, ["amber", "coral"]),
        ({"structured_outputs": {"regex": "[ab]"}}, ["a", "b"]),
    ],
)  # fmt: skip
def test_an_answer_is_held_to_a_form(
    tiny_url: str, fields: dict[str, Any], allowed: list[str]
) -> None:
    response = post(tiny_url, input=QUERY, temperature=0, **fields)
    assert text_of(response).replace(" ", "") in allowed
    if "text" in fields:
        assert response["text"]["format"]["schema"] == SCHEMA


# -- streams --------------------------------------------------------------------------------------


def test_a_stream_has_openais_events_in_their_order(tiny_url: str) -> None:
    text = {"type": "input_text", "text": QUERY}
    body = {"input": [{"role": "user", "content": [upload(tiny_url), text]}], **GREEDY}
    body |= {"ttt": {"evidence": FINE}, "include": ["message.output_text.logprobs"]}
    whole = post(tiny_url, **body)
    events = streamed(httpx, tiny_url, **body)
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.annotation.added", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    assert "".join(delta["delta"] for delta in deltas) == text_of(whole)
    scored = [token for delta in deltas for token in delta["logprobs"]]
    assert scored == whole["output"][0]["content"][0]["logprobs"] != []
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert (last["output"][0]["content"], last["usage"]) == (
        whole["output"][0]["content"],
        whole["usage"],
    )
    done = {event["type"]: event for event in events}
    item_id = last["output"][0]["id"]
    assert done["response.output_text.done"]["text"] == text_of(whole)
    assert done["response.content_part.done"]["part"] == last["output"][0]["content"][0]
    assert done["response.output_item.done"]["item"] == last["output"][0]
    assert {event["item_id"] for event in events if "item_id" in event} == {item_id}


def test_a_stream_that_reaches_the_limit_ends_as_incomplete(tiny_url: str) -> None:
    events = streamed(httpx, tiny_url, input="hello", max_output_tokens=1, ignore_eos=True)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_stream_that_fails_says_so_in_its_last_event(
    client: TestClient, fake: FakeBackend
) -> None:
    fake.fail("crash")
    events = streamed(client, input="crash")
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "internal_error"


# -- what is refused ------------------------------------------------------------------------------


def of_parts(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


HELLO = {"role": "user", "content": "hello"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input", "required"),
    ({"input": []}, "input", "at least 1"),
    ({"input": 5}, "input", "must be a string"),
    ({"input": ["hello"]}, "input", "list of objects"),
    ({"input": [{"type": "reasoning"}]}, "input", "must have a message"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "responses are not kept"),
    ({"input": [HELLO, {"type": "function_call_output", "call_id": "c", "output": ""}]}, "input",
     "calls no tools"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role", ""),
    ({"input": [{"role": "user"}]}, "input.0.content", "required"),
    ({"input": [{**HELLO, "colour": 1}]}, "input.0.colour", "no such field"),
    (of_parts({"type": "input_image", "image_url": "x"}), "input.0.content", "only parts of type"),
    (of_parts({"type": "input_text"}), "input.0.content.0.text", "required"),
    (of_parts({"type": "input_text", "text": 5}), "input.0.content.0.text", ""),
    (of_parts({"type": "input_file", "file_url": "http://x"}), "input.0.content.0.file_url",
     "opens no connections"),
    (of_parts({"type": "input_file"}), "input.0.content.0", "either file_id or file_data"),
    (of_parts({"type": "input_file", "file_id": "file-0"}), "input.0.content.0.file_id", "no file"),
    ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "are not kept"),
    ({"input": "a", "conversation": "conv_1"}, "conversation", "are not kept"),
    ({"input": "a", "background": True}, "background", "connection is open"),
    ({"input": "a", "prompt": {"id": "p"}}, "prompt", "prompt templates"),
    ({"input": "a", "truncation": "auto"}, "truncation", "only documents"),
    ({"input": "a", "tools": [{"type": "web_search"}]}, "tools", "calls no tools"),
    ({"input": "a", "max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"input": "a", "max_output_tokens": 5000}, "max_output_tokens", "at most 4096"),
    ({"input": "a", "max_tokens": 5}, "max_tokens", "no such field"),
    ({"input": "a", "n": 2}, "n", "no such field"),
    ({"input": "a", "include": ["everything"]}, "include.0", ""),
    ({"input": "a", "metadata": {"a": 5}}, "metadata.a", "string"),
    ({"input": "a", "metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
    ({"input": "a", "text": {"format": {"type": "grammar"}}}, "text.format.type", ""),
    ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {"enum": []}}}},
     "text.format.schema", ""),
    ({"input": "a", "text": {"format": {"type": "json_object"}}, "guided_choice": ["a"]},
     "guided_choice", "cannot be combined with text.format"),
    ({"input": "a", "ttt": {"adapt": {}}}, "ttt.adapt", "requires document"),
    ({"input": "a", "model": "gpt-4"}, "model", ""),
    ({"input": "\ud83d"}, "input", "Unicode"),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a\udc00"}]}]},
     "input.0.content.0.text", "Unicode"),
    ({"input": "a", "metadata": {"a": "\udfff"}}, "metadata.a", "Unicode"),
    ({"input": "a", "instructions": "\ud83d"}, "instructions", "Unicode"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "reason"), REFUSED)
def test_what_cannot_be_served_is_refused_by_its_field(
    tiny_url: str, body: dict[str, Any], param: str, reason: str
) -> None:
    for stream in ({}, {"stream": True}):
        response = httpx.post(
            f"{tiny_url}{PATH}",
            content=json.dumps({**body, **stream}),
            headers={"content-type": "application/json"},
        )
        error = response.json()["error"]
        assert response.status_code in (404, 422)
        assert error["param"] == param, error
        assert reason in error["message"]


def test_fields_that_change_nothing_are_taken(client: TestClient) -> None:
    neutral = {
        "background": False, "conversation": None, "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3, "parallel_tool_calls": True, "previous_response_id": None,
        "prompt_cache_key": "k", "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s", "service_tier": "auto", "store": True, "tools": [],
        "stream_options": {"include_obfuscation": False}, "text": {"verbosity": "low"},
        "tool_choice": "auto", "top_logprobs": None, "truncation": "disabled", "user": "u",
        "context_management": [], "moderation": None, "max_output_tokens": 4.0, "top_k": -1,
    }  # fmt: skip
    plain = client.post(PATH, json={"input": "hello", "max_output_tokens": 4}).json()
    response = client.post(PATH, json={"input": "hello", **neutral})
    assert response.status_code == 200, response.text
    assert text_of(response.json()) == text_of(plain)


@pytest.mark.parametrize("value", [5e-324, 1e-40, -0.0, 0.0])
def test_almost_no_temperature_is_the_likeliest_token(tiny_url: str, value: float) -> None:
    greedy = post(tiny_url, input=QUERY, **GREEDY)
    for fields in ({"temperature": value}, {"top_p": max(value, 5e-324)}):
        body = {"input": QUERY, "max_output_tokens": 8, **fields}
        assert text_of(post(tiny_url, **body)) == text_of(greedy)


# -- OpenAI's own client --------------------------------------------------------------------------


def test_openais_client(tiny_url: str) -> None:
    with openai.OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0) as client:
        options: dict[str, Any] = {
            "model": "tiny",
            "instructions": "Answer from the document.",
            "input": [
                {
                    "role": "user",
                    "content": [upload(tiny_url), {"type": "input_text", "text": QUERY}],
                }
            ],
            "temperature": 0,
            "max_output_tokens": 8,
            "extra_body": {"ttt": {"evidence": FINE}},
        }
        whole = client.responses.create(**options)
        assert whole.output_text == " falcon"
        assert whole.status == "completed"
        assert whole.usage is not None
        assert whole.usage.output_tokens == 2
        events = list(client.responses.create(**options, stream=True))
        assert (
            "".join(e.delta for e in events if e.type == "response.output_text.delta") == " falcon"
        )
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == " falcon"
        with client.responses.stream(**options) as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_text == " falcon"
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.responses.create(model="tiny", input="a", previous_response_id="resp_0")
        assert refused.value.param == "previous_response_id"


def test_openais_client_learns_of_a_failure(live: Callable[..., str], fake: FakeBackend) -> None:
    fake.fail("crash")
    with openai.OpenAI(base_url=f"{live()}/v1", api_key="none", max_retries=0) as client:
        events = list(client.responses.create(model="fake", input="crash", stream=True))
        assert events[-1].type == "response.failed"
        assert events[-1].response.error is not None
        assert events[-1].response.error.code == "internal_error"
