"""A tokenizer with more tokens than the model: no such token reaches the model, on any route."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from refine_server.ttt.models import bundled, load

WORD = "zyzzyva"
"""A token that was added to the tokenizer, but not to the weights."""
DOCUMENT = "The harbour code is amber."
HELLO = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(bundled.tiny(), directory)
    model = load(str(directory))
    known = model.embedding.num_embeddings
    fill = [f"added{number}" for number in range(known - len(model.tokenizer))]
    model.tokenizer.add_tokens([*fill, WORD])
    assert model.tokenizer.convert_tokens_to_ids(WORD) == known
    model.tokenizer.save_pretrained(directory)
    settings = Settings(model=str(directory), store="none", shutdown_seconds=0.3)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def chat(content: Any, **options: Any) -> dict[str, Any]:
    return {"messages": [HELLO, {"role": "user", "content": content}], "max_tokens": 2, **options}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/answers", {"document": f"a {WORD}", "query": "b"}, "document"),
        ("/v1/answers", {"document": "a b", "query": WORD}, "query"),
        ("/v1/answers", {"document": WORD, "query": "b", "context": "passages"}, "document"),
        ("/v1/answers", {"document": WORD, "query": "b", "context": "document"}, "document"),
        ("/v1/answers", {"document": "a b", "query": f"b {WORD}?", "adapt": {}}, "query"),
        ("/v1/adaptations", {"document": f"{DOCUMENT} {WORD}"}, "document"),
        ("/v1/adaptations", {"document": f"{DOCUMENT}\n{WORD}\n"}, "document"),
        ("/v1/completions", {"prompt": WORD}, "prompt"),
        ("/v1/responses", {"input": WORD}, "input"),
        ("/v1/responses", {"input": "a", "instructions": f"say {WORD}", "stream": True}, "input"),
        ("/v1/responses", {"input": "a", "ttt": {"document": WORD}}, "ttt.document"),
        (
            "/v1/responses",
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_file", "file_data": f"a {WORD}"},
                            {"type": "input_text", "text": "a"},
                        ],
                    }
                ]
            },
            "input.0.content.0.file_data",
        ),
        ("/v1/completions", {"prompt": ["a", f"b {WORD}"], "stream": True}, "prompt"),
        ("/v1/completions", {"prompt": [5, 2560]}, "prompt"),
        ("/v1/completions", {"prompt": [[5], [2**40]]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "ttt": {"document": WORD}}, "ttt.document"),
        ("/v1/chat/completions", chat(WORD), "messages"),
        ("/v1/chat/completions", chat([{"type": "text", "text": WORD}]), "messages"),
        ("/v1/chat/completions", chat("a", ttt={"document": WORD}), "ttt.document"),
        ("/tokenize", {"prompt": WORD}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": WORD}]}, "messages"),
    ],
)
def test_a_token_without_a_row_of_the_embedding_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "unknown_token")
    assert "is not in the model's vocabulary, 0 to 2559" in error["message"]


def test_it_is_refused_behind_an_adaptation_too(client: httpx.Client) -> None:
    body = {"document": DOCUMENT, "adapt": {"objective": "none"}}
    adaptation = client.post("/v1/adaptations", json=body).json()["id"]
    client.get(f"/v1/adaptations/{adaptation}/events")
    for path, body, param in (
        ("/v1/answers", {"adaptation": adaptation, "query": WORD}, "query"),
        ("/v1/completions", {"model": adaptation, "prompt": WORD}, "prompt"),
        ("/v1/chat/completions", chat(WORD, model=adaptation), "messages"),
    ):
        response = client.post(path, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (422, param)
    asked = client.post("/v1/answers", json={"adaptation": adaptation, "query": "Which code?"})
    assert asked.status_code == 200


def test_the_message_spells_the_token(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"prompt": f"a {WORD}"})
    assert f"prompt: token 2560, '{WORD}'," in response.json()["error"]["message"]


def test_the_tokenizers_own_texts_are_still_known_to_it(client: httpx.Client) -> None:
    """Only the model must not read it."""
    assert client.post("/detokenize", json={"tokens": [2560]}).json() == {"prompt": WORD}
