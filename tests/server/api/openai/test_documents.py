"""Documents in the OpenAI-compatible routes: what is read of them, cited, quoted and refused."""

import json
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from refine_server.clients.sse import parse

DOCUMENT = (
    "The harbour code is amber. The bakery owner is Tobias Hartley.\n\n"
    "The castle animal is falcon. The garden flower is orchid.\n\n"
    "The market spice is saffron. The library password is compass."
)
QUERY = "What is the castle animal?"
FINE = {"by": "bm25", "count": 1, "tokens": 16}
GREEDY = {"temperature": 0, "max_tokens": 8}


def chat(**ttt: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUERY}]
    return {"messages": messages, **GREEDY, "ttt": {"document": DOCUMENT, **ttt}}


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()
    return data


def streamed(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    body = {**body, "stream": True}
    with httpx.stream("POST", f"{url}{path}", json=body, timeout=60) as response:
        events = list(parse(response.iter_bytes()))
    assert events[-1].data == "[DONE]"
    return [json.loads(event.data) for event in events[:-1]]


@pytest.mark.parametrize("context", ["document", "passages", "document+passages", None])
def test_a_chat_reads_a_document_as_an_answer_does(tiny_url: str, context: str | None) -> None:
    fields = {"context": context, "evidence": FINE}
    asked = {"document": DOCUMENT, "query": QUERY, "max_tokens": 8, **fields}
    expected = post(tiny_url, "/v1/answers", asked)
    answered = post(tiny_url, "/v1/chat/completions", chat(**fields))
    assert answered["choices"][0]["message"]["content"] == expected["answer"] == " falcon"
    assert answered["usage"]["prompt_tokens"] == expected["usage"]["query_tokens"]
    told = answered["ttt"]
    assert (told["adaptation"], told["answered_by"]) == (None, "base")
    assert told["document_tokens"] == expected["usage"]["document_tokens"]
    assert told["citations"] == [{**c, "prompt_index": 0} for c in expected["citations"]]
    assert told["quotes"] == [{**q, "choice_index": 0} for q in expected["quotes"]]
    assert told["citations"][0]["text"].startswith("The castle animal")
    assert told["quotes"][0]["text"] == "falcon"


def test_a_chat_about_an_adapted_document_cites_it_as_an_answer_does(tiny_url: str) -> None:
    adapt = {"rollouts": {"positions": 2}, "optimizer": {"steps": 2}, "guard": "none"}
    asked = {"document": DOCUMENT, "query": QUERY, "max_tokens": 8, "adapt": adapt}
    expected = post(tiny_url, "/v1/answers", {**asked, "evidence": FINE})
    answered = post(tiny_url, "/v1/chat/completions", chat(adapt=adapt, evidence=FINE))
    assert answered["choices"][0]["message"]["content"] == expected["answer"]
    assert answered["usage"]["prompt_tokens"] == expected["usage"]["query_tokens"]
    assert answered["ttt"]["answered_by"] == "adapted"
    assert answered["ttt"]["citations"] == [{**c, "prompt_index": 0} for c in expected["citations"]]


@pytest.mark.parametrize("path", ["/v1/answers", "/v1/chat/completions"])
def test_the_client_names_the_evidence(tiny_url: str, path: str) -> None:
    start = DOCUMENT.index("The garden flower")
    spans = {"by": "spans", "spans": [{"start": start, "end": start + 28}]}
    if path == "/v1/answers":
        asked = {"document": DOCUMENT, "query": QUERY, "max_tokens": 8, "evidence": spans}
        told = post(tiny_url, path, asked)
    else:
        told = post(tiny_url, path, chat(evidence=spans))["ttt"]
    [citation] = told["citations"]
    assert (citation["text"], citation["score"]) == ("The garden flower is orchid.", None)


def test_evidence_is_for_the_users_last_message(tiny_url: str) -> None:
    body = chat(evidence=FINE)
    body["messages"] = [
        {"role": "system", "content": "Be brief."},
        *({"role": "user", "content": QUERY}, {"role": "assistant", "content": "falcon"}),
        {"role": "user", "content": "And the market spice?"},
    ]
    [citation] = post(tiny_url, "/v1/chat/completions", body)["ttt"]["citations"]
    assert "saffron" in citation["text"]


def test_every_prompt_of_a_completion_has_evidence_of_its_own(tiny_url: str) -> None:
    prompts = [f"\n\nQuestion: What is the {what}?\nAnswer:" for what in ("castle animal", "spice")]
    body = {"prompt": prompts, "n": 2, **GREEDY, "ttt": {"document": DOCUMENT, "evidence": FINE}}
    told = post(tiny_url, "/v1/completions", body)["ttt"]
    cited = [(c["prompt_index"], c["text"].strip()[:15]) for c in told["citations"]]
    assert cited == [(0, "The castle anim"), (1, "The market spic")]
    for part in (*told["citations"], *told["quotes"]):
        assert DOCUMENT[part["start"] : part["end"]] == part["text"]


def test_a_completion_continues_a_document_as_it_is(tiny_url: str) -> None:
    """With nothing said of evidence, the prompts are just what follows the document."""
    question = f"\n\nQuestion: {QUERY}\nAnswer:"
    behind = {"prompt": question, **GREEDY, "logprobs": 1, "echo": True}
    told = post(tiny_url, "/v1/completions", {**behind, "ttt": {"document": DOCUMENT}})
    whole = post(tiny_url, "/v1/completions", {**behind, "prompt": DOCUMENT + question})
    assert (told["ttt"]["citations"], told["ttt"]["quotes"]) == ([], [])
    mine, theirs = (c["choices"][0]["logprobs"]["token_logprobs"] for c in (told, whole))
    assert mine == pytest.approx(theirs[-len(mine) :], abs=1e-4)


def test_a_stream_has_citations_and_quotes_where_a_choice_ends(tiny_url: str) -> None:
    whole = post(tiny_url, "/v1/chat/completions", chat(evidence=FINE))
    *chunks, last = streamed(tiny_url, "/v1/chat/completions", chat(evidence=FINE))
    assert last["choices"][0]["finish_reason"] is not None
    assert last["ttt"] == whole["ttt"]
    known = {n: v for n, v in last["ttt"].items() if n not in ("citations", "quotes")}
    assert set(known) == {
        *("adaptation", "answered_by", "kept_base_reason", "document_tokens", "overflow")
    }
    assert [chunk["ttt"] for chunk in chunks] == [known] * len(chunks)


def test_each_choice_of_a_stream_ends_with_its_own_evidence(tiny_url: str) -> None:
    prompts = [f"\n\nQuestion: What is the {what}?\nAnswer:" for what in ("castle animal", "spice")]
    body = {"prompt": prompts, "n": 2, **GREEDY, "ttt": {"document": DOCUMENT, "evidence": FINE}}
    whole = post(tiny_url, "/v1/completions", body)["ttt"]
    ends = {
        chunk["choices"][0]["index"]: chunk["ttt"]
        for chunk in streamed(tiny_url, "/v1/completions", body)
        if chunk["choices"][0]["finish_reason"]
    }
    for index in range(4):
        own = [c for c in whole["citations"] if c["prompt_index"] == index // 2]
        assert ends[index]["citations"] == own
        assert ends[index]["quotes"] == [q for q in whole["quotes"] if q["choice_index"] == index]


@pytest.mark.parametrize(
    ("ttt", "param", "message"),
    [
        ({"evidence": FINE}, "ttt.evidence", "requires document"),
        ({"context": "passages"}, "ttt.context", "requires document"),
        ({"document": "x", "context": "summary"}, "ttt.context", "passages"),
        ({"document": "x", "evidence": {"by": "magic"}}, "ttt.evidence.by", "bm25"),
        ({"document": "x", "evidence": {"by": "bm25", "count": 0}}, "ttt.evidence.count", "1"),
        (
            {"document": "x", "evidence": {"by": "spans", "spans": [{"start": 0, "end": 9}]}},
            "ttt.evidence.spans.0",
            "no text of the document",
        ),
        (
            {"document": "x", "context": "passages", "evidence": {"by": "utility"}},
            "ttt.evidence.by",
            "be document",
        ),
        ({"document": "x", "context": "passages", "adapt": {}}, "ttt.context", "adaptation"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_does_not_fit_is_refused_under_its_own_name(
    client: TestClient, path: str, ttt: dict[str, Any], param: str, message: str
) -> None:
    asked = {"prompt": "who"} if path == "/v1/completions" else chat()
    refused = client.post(path, json={**asked, "ttt": ttt})
    assert refused.status_code == 422, refused.text
    error = refused.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(("field", "value"), [("evidence", FINE), ("context", "passages")])
def test_an_adaptation_without_its_text_has_no_evidence(
    client: TestClient, field: str, value: object
) -> None:
    short = chat(document="lighthouse", adapt={"optimizer": {"steps": 1}})
    adaptation = client.post("/v1/chat/completions", json=short).json()["ttt"]["adaptation"]
    body = {**short, "model": adaptation, "ttt": {field: value}}
    refused = client.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, f"ttt.{field}")
    body["ttt"] = {"context": "document"}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_second_question_finds_the_document_as_it_was_read(tiny_url: str) -> None:
    def misses() -> float:
        metrics = httpx.get(f"{tiny_url}/metrics").text
        lines = (line.split() for line in metrics.splitlines())
        [value] = [v for name, *_, v in lines if name == "refine_document_cache_misses_total"]
        return float(value)

    body = chat(document=f"A second one. {DOCUMENT}")
    before = misses()
    for _ in range(2):
        post(tiny_url, "/v1/chat/completions", body)
    assert misses() == before + 1
