"""JSON answers and choices over HTTP, on every route that answers, whole and in a stream."""

import json
import re
from typing import Any

import httpx
import openai
import pytest

from refine_server.clients import RefineClient, sse

DOCUMENT = "The harbour code is amber. The garden code is coral. The tower code is ivory."
QUERY = "What is the harbour code?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"enum": ["amber", "coral"]}, "sure": {"type": "boolean"}},
    "required": ["code", "sure"],
    "additionalProperties": False,
}
JSON: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "code", "schema": SCHEMA, "strict": True},
}
CHOICES = ["coral", "amber", "ivory"]
ADAPT = {"optimizer": {"steps": 1}, "rollouts": {"positions": 2}}
MESSAGES = [{"role": "user", "content": QUERY}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/answers": {"document": DOCUMENT, "query": QUERY},
    "/v1/completions": {"prompt": f"{DOCUMENT}\n\nQuestion: {QUERY}\nAnswer:", "seed": 1},
    "/v1/chat/completions": {"messages": MESSAGES, "seed": 1},
}


def post(url: str, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}{path}", json={"max_tokens": 60, **body}, timeout=60)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


def text_of(response: dict[str, Any]) -> tuple[str, str]:
    """Return a response's text and why it ended."""
    if "answer" in response:
        return response["answer"], response["finish_reason"]
    [choice] = response["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"], choice[
        "finish_reason"
    ]


def streamed(url: str, path: str, **body: Any) -> str:
    body = {"max_tokens": 60, **body, "stream": True}
    content = httpx.post(f"{url}{path}", json=body, timeout=60).content
    text = ""
    for event in sse.parse([content]):
        if event.event == "answer.delta":
            text += json.loads(event.data)["text"]
        elif event.event == "message" and event.data != "[DONE]":
            for choice in json.loads(event.data)["choices"]:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text


def is_right(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == SCHEMA["properties"].keys() and value["code"] in ("amber", "coral")


@pytest.mark.parametrize("path", ROUTES)
def test_json_of_a_schema_whole_and_in_a_stream(tiny_url: str, path: str) -> None:
    body = {**ROUTES[path], "response_format": JSON}
    text, reason = text_of(post(tiny_url, path, **body))
    assert is_right(text)
    assert reason == "stop"
    assert streamed(tiny_url, path, **body) == text


@pytest.mark.parametrize("path", ROUTES)
def test_one_of_several_texts_whole_and_in_a_stream(tiny_url: str, path: str) -> None:
    body = {**ROUTES[path], "guided_choice": CHOICES}
    text, reason = text_of(post(tiny_url, path, **body))
    assert text in CHOICES
    assert reason == "stop"
    assert streamed(tiny_url, path, **body) == text


NULL_SCHEMAS = [({"const": None}, None), ({"const": {"a": None}}, {"a": None})]


@pytest.mark.parametrize("path", [*ROUTES, "/v1/responses"])
@pytest.mark.parametrize(("schema", "expected"), NULL_SCHEMAS)
def test_null_in_a_schema_is_a_value(
    tiny_url: str, path: str, schema: dict[str, Any], expected: Any
) -> None:
    """Elsewhere in a request it is the same as leaving a field out."""
    if path == "/v1/responses":
        form = {"type": "json_schema", "name": "a", "schema": schema}
        body = {"input": QUERY, "text": {"format": form}}
        response = httpx.post(f"{tiny_url}{path}", json=body, timeout=60).json()
        text = response["output"][0]["content"][0]["text"]
    else:
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
        text, _ = text_of(post(tiny_url, path, **ROUTES[path], response_format=form))
    assert json.loads(text) == expected


@pytest.mark.parametrize("path", ROUTES)
def test_any_json_object(tiny_url: str, path: str) -> None:
    body = {**ROUTES[path], "response_format": {"type": "json_object"}, "temperature": 0}
    text, reason = text_of(post(tiny_url, path, **body))
    assert reason == "length" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("neutral", [None, {"type": "text"}])
def test_any_text_is_what_it_was(tiny_url: str, path: str, neutral: dict[str, str] | None) -> None:
    body = {**ROUTES[path], "temperature": 0, "max_tokens": 6}
    plain = text_of(post(tiny_url, path, **body))
    assert text_of(post(tiny_url, path, **body, response_format=neutral)) == plain


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_that_is_cut_off_has_the_reason_length(tiny_url: str, path: str) -> None:
    body = {**ROUTES[path], "response_format": JSON, "max_tokens": 3}
    assert text_of(post(tiny_url, path, **body))[1] == "length"


def test_answers_of_kept_adaptations_and_documents_of_chats(tiny_url: str) -> None:
    ttt = {"document": DOCUMENT, "adapt": ADAPT}
    chat = post(tiny_url, "/v1/chat/completions", messages=MESSAGES, ttt=ttt, response_format=JSON)
    assert is_right(text_of(chat)[0])
    kept = chat["ttt"]["adaptation"]
    body = {"adaptation": kept, "query": QUERY, "response_format": JSON}
    text, _ = text_of(post(tiny_url, "/v1/answers", **body))
    assert is_right(text)
    assert streamed(tiny_url, "/v1/answers", **body) == text
    chosen = post(tiny_url, "/v1/completions", model=kept, prompt=QUERY, guided_choice=CHOICES)
    assert text_of(chosen)[0] in CHOICES


def test_an_answer_under_adapted_weights(tiny_url: str) -> None:
    body = {**ROUTES["/v1/answers"], "adapt": {**ADAPT, "guard": "none"}, "compare_base": True}
    answer = post(tiny_url, "/v1/answers", **body, response_format=JSON)
    assert answer["answered_by"] == "adapted"
    assert is_right(answer["answer"])
    assert is_right(answer["base_answer"])


def test_every_choice_of_every_prompt(tiny_url: str) -> None:
    body = {"prompt": ["One:", "Two:"], "n": 3, "seed": 1, "guided_choice": CHOICES}
    texts = [c["text"] for c in post(tiny_url, "/v1/completions", **body)["choices"]]
    assert len(texts) == 6
    assert set(texts) <= set(CHOICES)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice.1"),
        ({"guided_choice": [" a"]}, "guided_choice.0"),
        ({"guided_choice": ["a"], "response_format": JSON}, "guided_choice"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_cannot_be_is_422_before_a_stream_begins(
    tiny_url: str, path: str, form: dict[str, Any], param: str, stream: bool
) -> None:
    error = post(tiny_url, path, 422, **ROUTES[path], **form, stream=stream)["error"]
    assert error["param"] == param


OPENAI = ["/v1/completions", "/v1/chat/completions"]
STRUCTURED: list[tuple[dict[str, Any], str]] = [
    ({"choice": CHOICES}, "amber|coral|ivory"),
    ({"regex": "[a-z]{3}/[0-9]{2}"}, "[a-z]{3}/[0-9]{2}"),
    ({"grammar": 'start: "yes" | "no" /[0-9]/'}, "yes|no[0-9]"),
    ({"grammar": 'root ::= "yes" | "no" [0-9]'}, "yes|no[0-9]"),
    ({"json": {"enum": ["amber", "coral"]}}, '"amber"|"coral"'),
    ({"json": json.dumps({"enum": ["amber", "coral"]}), "regex": None}, '"amber"|"coral"'),
]


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(("form", "pattern"), STRUCTURED)
def test_structured_outputs_as_vllm_names_them(
    tiny_url: str, path: str, form: dict[str, Any], pattern: str
) -> None:
    neutral = {"disable_fallback": True, "disable_any_whitespace": False}
    body = {**ROUTES[path], "structured_outputs": {**form, **neutral}}
    text, reason = text_of(post(tiny_url, path, **body))
    assert re.fullmatch(pattern, text)
    assert reason == "stop"
    assert streamed(tiny_url, path, **body) == text


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex", "look-around"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.regex",
         "cannot be combined with structured_outputs.choice"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "an object"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "must be JSON"),
        ({"structured_outputs": {"json_object": True}, "guided_choice": ["a"]},
         "structured_outputs.json_object", "cannot be combined with guided_choice"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag",
         "not supported"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar", ""),
        ({"guided_json": {}}, "guided_json", "send it as structured_outputs"),
    ],
)  # fmt: skip
def test_structured_outputs_that_cannot_be_are_refused_by_name(
    tiny_url: str, path: str, fields: dict[str, Any], param: str, reason: str
) -> None:
    error = post(tiny_url, path, 422, **ROUTES[path], **fields)["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert reason in error["message"]


def test_the_clients_send_it(tiny_url: str) -> None:
    with openai.OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": QUERY}],
            response_format=JSON,  # type: ignore[arg-type]
            max_tokens=60,
        )
        assert is_right(chat.choices[0].message.content or "")
    with RefineClient(tiny_url) as ours:
        format_ = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
        answer = ours.answer(QUERY, document=DOCUMENT, response_format=format_)  # type: ignore[arg-type]
        assert is_right(answer.answer)
