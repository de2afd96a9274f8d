"""Log-probabilities of chats are those of the content: stop strings are not among them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_server.clients.sse import parse
from refine_server.server.api.openai.format import ChatEncoder
from refine_server.ttt.interface.events import ChoiceEnded, CompletionDelta, PromptRead, ScoredToken

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "The harbour code is amber. Tell a long story."}],
    "temperature": 0,
    "max_tokens": 16,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def client(tiny_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_url, timeout=30) as client:
        yield client


def whole(client: httpx.Client, **options: Any) -> tuple[str, list[str]]:
    choice = client.post("/v1/chat/completions", json={**CHAT, **options}).json()["choices"][0]
    return choice["message"]["content"], [t["token"] for t in choice["logprobs"]["content"]]


def streamed(client: httpx.Client, **options: Any) -> tuple[str, list[str]]:
    body = {**CHAT, **options, "stream": True}
    text, tokens = "", []
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for event in parse(response.iter_bytes()):
            if event.data == "[DONE]":
                break
            choice = json.loads(event.data)["choices"][0]
            text += choice["delta"].get("content", "")
            tokens += [t["token"] for t in (choice["logprobs"] or {"content": []})["content"]]
    return text, tokens


@pytest.mark.parametrize("ask", [whole, streamed])
def test_without_a_stop_string_the_tokens_are_the_text(client: httpx.Client, ask: Any) -> None:
    text, tokens = ask(client, ignore_eos=True)
    assert len(tokens) == 16
    text, tokens = ask(client)
    assert "".join(tokens) == text


@pytest.mark.parametrize("ask", [whole, streamed])
def test_no_token_of_a_stop_string_is_reported(client: httpx.Client, ask: Any) -> None:
    text, tokens = whole(client, ignore_eos=True, max_tokens=12)
    for count in (0, 1, 3):  # tokens before the stop string
        before = "".join(tokens[:count])
        for length in (1, 2, 4):  # its own tokens
            stop = "".join(tokens[count : count + length])
            if not stop or text.find(stop) != len(before):
                continue
            cut, left = ask(client, ignore_eos=True, max_tokens=12, stop=stop)
            assert (cut, left) == (before, tokens[:count])


@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_token_that_a_stop_string_cuts_is_reported(client: httpx.Client, ask: Any) -> None:
    _, tokens = whole(client, ignore_eos=True, max_tokens=4)
    stop = tokens[0][-2:] + tokens[1][:1]
    text, left = ask(client, ignore_eos=True, max_tokens=4, stop=[stop])
    assert text == tokens[0][:-2]
    assert left == tokens[:1]


def test_a_stop_string_that_only_begins_takes_no_token(client: httpx.Client) -> None:
    text, tokens = whole(client, ignore_eos=True, max_tokens=4)
    for ask in (whole, streamed):
        assert ask(client, ignore_eos=True, max_tokens=4, stop=text + "~") == (text, tokens)


def test_completions_report_the_tokens_that_end_them(client: httpx.Client) -> None:
    body = {"prompt": "The harbour code is", "temperature": 0, "max_tokens": 6, "logprobs": 0}
    free = client.post("/v1/completions", json=body).json()["choices"][0]
    stop = free["logprobs"]["tokens"][1]
    cut = client.post("/v1/completions", json={**body, "stop": stop}).json()["choices"][0]
    assert cut["logprobs"]["tokens"] == free["logprobs"]["tokens"][:2]


# -- any tokens -----------------------------------------------------------------------------------


def reported(pieces: Sequence[str], released: Sequence[str], end: str, *, ends: bool) -> list[str]:
    """Return the tokens that are reported, and check that a chunk's are those of the whole."""
    encoder = ChatEncoder("id", "m", "fp", n=1, logprobs=True, usage_in="response", ttt=None)
    encoder.add(PromptRead(0, 1, 0.0, ()))
    chunks: list[dict[str, Any]] = []
    start = 0
    for n, (piece, text) in enumerate(zip(pieces, released, strict=True)):
        is_end = ends and n == len(pieces) - 1
        event = CompletionDelta(0, text, ScoredToken(piece.encode(), -1.0), is_end, start)
        encoder.add(event)
        chunks += [json.loads(c.data) for c in encoder.chunks(event)]
        start += len(piece)
    last = ChoiceEnded(0, end)
    encoder.add(last)
    chunks += [json.loads(c.data) for c in encoder.chunks(last)]
    tokens = [
        token["token"]
        for chunk in chunks
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert tokens == [token.text for token in encoder._choices[0].tokens]
    return tokens


@given(
    st.lists(st.sampled_from(["", "a", "bc", "def"]), min_size=1, max_size=8), st.integers(0, 20)
)
def test_tokens_within_the_content_are_reported_and_no_others(pieces: list[str], cut: int) -> None:
    text = "".join(pieces)
    cut = min(cut, len(text))
    held = [""] * (len(pieces) - 1)
    starts = [len("".join(pieces[:n])) for n in range(len(pieces))]
    stopped = reported(pieces, [*held, text[:cut]], "stop", ends=False)
    assert stopped == [p for p, start in zip(pieces, starts, strict=True) if start < cut]
    assert reported(pieces, [*held, text], "length", ends=False) == pieces
    assert reported([*pieces, "<end>"], [*held, text, ""], "stop", ends=True) == pieces
