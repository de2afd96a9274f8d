"""Texts and structures far over the limits, on every route: refused after little work."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from refine_server.ttt.evidence import lexical
from refine_server.ttt.interface.requests import Limits

BYTES = 3_900_000
"""Of the text: what a request's body may have, less room for the rest."""

ENGLISH = "The lighthouse keeper writes the weather into a blue book every evening at eight. "
TEXTS = {
    "spaces": "a" + " " * BYTES,
    "English": ENGLISH * (BYTES // len(ENGLISH)),
    "one letter": "a" * BYTES,
    "emoji": "\U0001f980" * (BYTES // 4),
    "Chinese": "\u6f22\u5b57\u4e2d\u6587" * (BYTES // 12),
    "JSON": '{"a": [1, "\\"]}, ' * (BYTES // 24),
}

HELLO = [{"role": "user", "content": "hello"}]
FIRST: dict[str, Any] = {"json": {"prompt": "first"}, "timeout": 30}


def prompts(text: str) -> list[str]:
    """One oversized prompt behind a hundred short ones."""
    return ["hello"] * 100 + [text]


def turns(text: str) -> list[dict[str, str]]:
    """A conversation of many turns, each within the limits, that is oversized as a whole."""
    pieces = [text[at : at + 10_000] for at in range(0, len(text), 10_000)]
    return [{"role": "user", "content": piece} for piece in pieces]


ROUTES: dict[str, tuple[str, Callable[[str], dict[str, Any]], int, str]] = {
    "document": ("/v1/answers", lambda t: {"document": t, "query": "who?"}, 413, "document"),
    "query": ("/v1/answers", lambda t: {"document": "a log", "query": t}, 413, "query"),
    "evidence": (
        "/v1/answers",
        lambda t: {"document": "a log", "query": "who?", "evidence": {"by": "bm25", "words": t}},
        413,
        "evidence.words",
    ),
    "adaptation": ("/v1/adaptations", lambda t: {"document": t}, 413, "document"),
    "estimate": ("/v1/estimate", lambda t: {"document": "a log", "query": t}, 413, "query"),
    "prompt": ("/v1/completions", lambda t: {"prompt": t}, 400, "prompt"),
    "prompts": ("/v1/completions", lambda t: {"prompt": prompts(t)}, 400, "prompt"),
    "turns": ("/v1/chat/completions", lambda t: {"messages": turns(t)}, 400, "messages"),
    "ttt": (
        "/v1/chat/completions",
        lambda t: {"messages": HELLO, "ttt": {"document": t}},
        413,
        "ttt.document",
    ),
    "input": ("/v1/responses", lambda t: {"input": t}, 400, "input"),
    "input turns": ("/v1/responses", lambda t: {"input": turns(t)}, 400, "input"),
    "instructions": ("/v1/responses", lambda t: {"input": "a", "instructions": t}, 400, "input"),
    "file": (
        "/v1/responses",
        lambda t: {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_file", "file_data": f"- {t}"},
                        {"type": "input_text", "text": "who?"},
                    ],
                }
            ]
        },
        413,
        "input.0.content.0.file_data",
    ),
    "tokenize": ("/tokenize", lambda t: {"prompt": t}, 400, "prompt"),
    "tokenize turns": ("/tokenize", lambda t: {"messages": turns(t)}, 400, "messages"),
}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths, in characters, of all texts that are encoded or split into words."""
    lengths: list[int] = []
    encode, terms = PreTrainedTokenizerBase.__call__, lexical.terms

    def recording(tokenizer: Any, text: str, **options: Any) -> Any:
        lengths.append(len(text))
        return encode(tokenizer, text, **options)

    def recording_terms(text: str) -> list[str]:
        lengths.append(len(text))
        return terms(text)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", recording)
    monkeypatch.setattr(lexical, "terms", recording_terms)
    return lengths


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("route", ROUTES)
def test_an_oversized_text_is_refused_before_it_is_encoded_whole(
    tiny_url: str, encoded: list[int], route: str, kind: str
) -> None:
    path, body_of, status, param = ROUTES[route]
    content = json.dumps(body_of(TEXTS[kind]), ensure_ascii=False).encode()
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{tiny_url}{path}", content=content, headers=headers, timeout=30)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert "at most" in error["message"]
    # tiny's tokens have 14 characters at most, and the longest text is refused by that alone.
    # Of a document more is accepted than is read.
    is_document = param.endswith(("document", "file_data"))
    accepted = Limits().sent_tokens if is_document else Limits().prompt_tokens
    assert sum(encoded) <= accepted + 1


@pytest.mark.parametrize("route", ["document", "tokenize"])
def test_a_small_request_is_served_beside_oversized_ones(tiny_url: str, route: str) -> None:
    """Encoding all the spaces would take some ten seconds, in which no other request is served."""
    path, body_of, status, _ = ROUTES[route]
    content = json.dumps(body_of(TEXTS["spaces"])).encode()
    headers = {"content-type": "application/json"}

    def post_oversized() -> int:
        return httpx.post(f"{tiny_url}{path}", content=content, headers=headers).status_code

    with ThreadPoolExecutor(3) as clients:
        statuses = [clients.submit(post_oversized) for _ in range(12)]
        for _ in range(10):
            began = time.monotonic()
            small = httpx.post(f"{tiny_url}/tokenize", json={"prompt": "hello"})
            assert small.status_code == 200
            assert time.monotonic() - began < 2.0
    assert {done.result() for done in statuses} == {status}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "second"}),
        ("/v1/answers", {"document": "second", "query": "second"}),
        ("/v1/adaptations", {"document": "second", "adapt": {"objective": "none"}}),
        ("/v1/completions", {"prompt": "second"}),
        ("/v1/chat/completions", {"messages": HELLO, "ttt": {"document": "second"}}),
    ],
)
def test_a_text_of_a_client_that_left_is_not_encoded(
    live: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[..., None],
    path: str,
    body: dict[str, Any],
) -> None:
    texts: list[str] = []
    gate = threading.Event()
    encode = PreTrainedTokenizerBase.__call__

    def waiting(tokenizer: Any, text: str, **options: Any) -> Any:
        texts.append(text)
        assert text != "first" or gate.wait(20)
        return encode(tokenizer, text, **options)

    url = live()
    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", waiting)
    first = threading.Thread(target=httpx.post, args=(f"{url}/tokenize",), kwargs=FIRST)
    first.start()
    wait_for(lambda: "first" in texts)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}{path}", json=body, timeout=0.2)
    wait_for(lambda: f'endpoint="{path}",status="499"' in httpx.get(f"{url}/metrics").text)
    gate.set()
    first.join()
    assert httpx.post(f"{url}/tokenize", json={"prompt": "third"}).status_code == 200
    assert "second" not in texts


MILLION = 1_000_000
STRUCTURES: dict[str, tuple[str, bytes]] = {
    "token ids": ("/v1/completions", b'{"prompt": [' + b"5," * MILLION + b"5]}"),
    "tokens": ("/detokenize", b'{"tokens": [' + b"5," * MILLION + b"5]}"),
    "lists": ("/v1/answers", b'{"query": "q", "document": [' + b"[]," * MILLION + b"[]]}"),
    "nested lists": ("/v1/adaptations", b'{"document": ' + b"[" * MILLION + b"]" * MILLION + b"}"),
    "parts": (
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": ['
        + b'{"type": "text", "text": "hello"},' * 70_000
        + b'{"type": "text", "text": "hello"}]}]}',
    ),
    "fields": ("/tokenize", b"{" + b'"k": 1,' * 300_000 + b'"k": 1}'),
    "ignored": ("/v1/completions", b'{"prompt": "a", "user": [' + b"[]," * MILLION + b"[]]}"),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    tiny_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    parsed: list[int] = []
    parse = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(len(text)) or parse(text))
    path, content = STRUCTURES[kind]
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{tiny_url}{path}", content=content, headers=headers, timeout=30)
    assert response.status_code == 413
    assert parsed == []
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("body_too_large", None)
    assert "values" in error["message"]


def test_token_ids_over_the_limit_of_a_prompt_are_refused_by_that(tiny_url: str) -> None:
    response = httpx.post(f"{tiny_url}/v1/completions", json={"prompt": [5] * 200_000}, timeout=30)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "prompt")
    assert error["message"] == "prompt: 200000 tokens; at most 36864 are accepted"


def test_a_text_that_fits_is_encoded_once(tiny_url: str, encoded: list[int]) -> None:
    text = ENGLISH * 100
    response = httpx.post(f"{tiny_url}/tokenize", json={"prompt": text})
    assert response.status_code == 200
    assert encoded == [len(text)]


@pytest.mark.parametrize(("tokens", "status"), [(36_864, 200), (36_865, 400)])
def test_tokens_to_decode_are_bounded(tiny_url: str, tokens: int, status: int) -> None:
    response = httpx.post(f"{tiny_url}/detokenize", json={"tokens": [5] * tokens})
    assert response.status_code == status
    if status == 400:
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("tokens", "context_length_exceeded")
