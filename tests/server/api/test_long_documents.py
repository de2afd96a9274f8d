"""Documents longer than the model was trained for, over HTTP: read in part, and told."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.clients import sse
from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from support.small_models import write_llama

UntilOpen = Callable[[FastAPI], None]

POSITIONS = 512
KEY = "The harbour master keeps the amber key in a blue book.\n"
FILLER = [f"The keeper of tower {n} wrote about the weather and the boats.\n" for n in range(90)]
DOCUMENT = "".join([*FILLER[:45], KEY, *FILLER[45:]])
QUESTION = "Where does the harbour master keep the amber key?"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = write_llama(tmp_path_factory.mktemp("short"), max_position_embeddings=POSITIONS)
    store = f"file://{tmp_path_factory.mktemp('store')}"
    return Settings(model=str(model), store=store, shutdown_seconds=0.3)


@pytest.fixture(scope="module")
def client(settings: Settings, wait_until_open: UntilOpen) -> Iterator[TestClient]:
    app = create_app(settings)
    with TestClient(app) as client:
        wait_until_open(app)
        yield client


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


def check(overflow: dict[str, Any], handled: str) -> None:
    assert overflow["handled"] == handled
    assert overflow["read_tokens"] < POSITIONS < overflow["sent_tokens"]
    assert all(DOCUMENT[gap["start"] : gap["end"]].strip() for gap in overflow["left_out"])


def test_the_length_is_advertised(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert (model["max_model_len"], model["context_length"]) == (POSITIONS, POSITIONS)
    assert client.get("/tokenizer_info").json()["model_max_length"] == POSITIONS
    counted = post(client, "/tokenize", prompt=DOCUMENT)
    assert counted["max_model_len"] == POSITIONS < counted["count"]


def test_an_answer_tells_what_was_read(client: TestClient) -> None:
    answer = post(client, "/v1/answers", document=DOCUMENT, query=QUESTION, max_tokens=8)
    check(answer["overflow"], "passages")
    place = DOCUMENT.index(KEY)
    gaps = answer["overflow"]["left_out"]
    assert not any(gap["start"] <= place < gap["end"] for gap in gaps)
    assert answer["usage"]["document_tokens"] == answer["overflow"]["read_tokens"]
    [citation] = [c for c in answer["citations"] if "amber key" in c["text"]]
    assert citation["text"] == DOCUMENT[citation["start"] : citation["end"]]


def test_a_stream_tells_the_same(client: TestClient) -> None:
    body = {"document": DOCUMENT, "query": QUESTION, "max_tokens": 8, "temperature": 0}
    whole = post(client, "/v1/answers", **body)
    response = client.post("/v1/answers", json={**body, "stream": True})
    *_, last = sse.parse([response.content])
    assert json.loads(last.data)["overflow"] == whole["overflow"]
    assert json.loads(last.data)["answer"] == whole["answer"]


@pytest.mark.parametrize("adapt", [{"optimizer": {"steps": 1}}, {"objective": "none"}])
def test_the_middle_is_cut_out_on_demand(client: TestClient, adapt: dict[str, Any]) -> None:
    answer = post(
        client,
        "/v1/answers",
        document=DOCUMENT,
        query=QUESTION,
        adapt=adapt,
        on_overflow="truncate_middle",
        max_tokens=4,
    )
    check(answer["overflow"], "truncate_middle")


def test_it_is_refused_on_demand(client: TestClient) -> None:
    body = {"document": DOCUMENT, "query": QUESTION, "on_overflow": "error"}
    error = post(client, "/v1/answers", 413, **body)["error"]
    assert (error["param"], error["code"]) == ("document", "document_too_long")
    body = {"document": DOCUMENT, "on_overflow": "error"}
    assert post(client, "/v1/adaptations", 413, **body)["error"]["param"] == "document"
    chat = {"messages": [{"role": "user", "content": "who?"}], "ttt": body}
    assert post(client, "/v1/chat/completions", 413, **chat)["error"]["param"] == "ttt.document"


def test_a_short_document_has_no_overflow(client: TestClient) -> None:
    assert post(client, "/v1/answers", document=KEY, query="who?", max_tokens=2)["overflow"] is None


def test_passages_cannot_be_chosen_without_a_query(client: TestClient) -> None:
    body = {"document": DOCUMENT, "on_overflow": "passages"}
    assert post(client, "/v1/adaptations", 422, **body)["error"]["param"] == "on_overflow"


def test_prompts_are_refused_as_openai_does(client: TestClient) -> None:
    for path, body in {
        "/v1/completions": {"prompt": DOCUMENT},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": DOCUMENT}]},
    }.items():
        error = post(client, path, 400, **body)["error"]
        assert error["code"] == "context_length_exceeded"
        assert str(POSITIONS - 1) in error["message"]


def test_an_answer_ends_with_the_positions(client: TestClient) -> None:
    body = {"prompt": [5] * (POSITIONS - 3), "max_tokens": 50, "ignore_eos": True}
    completion = post(client, "/v1/completions", **body)
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["completion_tokens"] == 3


def test_a_kept_document_tells_it_too_and_after_a_restart(
    settings: Settings, wait_until_open: UntilOpen
) -> None:
    app = create_app(settings)
    adapt = {"optimizer": {"steps": 1}}
    with TestClient(app) as client:
        wait_until_open(app)
        chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}
        ttt = {"document": DOCUMENT, "adapt": adapt}
        first = post(client, "/v1/chat/completions", **chat, ttt=ttt)["ttt"]
        check(first["overflow"], "truncate_middle")
        kept = client.get(f"/v1/adaptations/{first['adaptation']}").json()
        assert kept["overflow"] == first["overflow"]
        asked = {"adaptation": first["adaptation"], "query": QUESTION, "max_tokens": 4}
        answer = post(client, "/v1/answers", **asked)
        assert answer["overflow"] == first["overflow"]
        own = next(m for m in client.get("/v1/models").json()["data"] if m["parent"])
        assert own["max_model_len"] == POSITIONS - kept["document_tokens"]
        unfit = post(client, "/v1/answers", 422, **asked, on_overflow="error")
        assert unfit["error"]["param"] == "on_overflow"
    app = create_app(settings)
    with TestClient(app) as client:
        wait_until_open(app)
        again = client.get(f"/v1/adaptations/{first['adaptation']}").json()
        assert again["overflow"] == first["overflow"]
        assert post(client, "/v1/answers", **asked)["answer"] == answer["answer"]


def test_a_window_reads_any_length(tmp_path: Path, wait_until_open: UntilOpen) -> None:
    model = write_llama(tmp_path, max_position_embeddings=POSITIONS)
    app = create_app(Settings(model=str(model), window=64, store="none", shutdown_seconds=0.3))
    with TestClient(app) as client:
        wait_until_open(app)
        [told] = client.get("/v1/models").json()["data"]
        assert (told["max_model_len"], told["context_length"]) == (36_864, None)
        body = {"document": DOCUMENT, "query": QUESTION, "max_tokens": 2}
        assert post(client, "/v1/answers", **body)["overflow"] is None
