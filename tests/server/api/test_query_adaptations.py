"""Adaptations of queries over HTTP, on the tiny model: made, asked, restarted, and forgotten."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.adaptations import registry
from refine_server.server.app import create_app
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.settings import Settings

DOCUMENT = (
    "The harbour code is amber. The bakery owner is Tobias Hartley.\n\n"
    "The castle animal is falcon. The garden flower is orchid.\n\n"
    "The market spice is saffron. The library password is compass."
)
QUERIES = ["What is the castle animal?", "What is the market spice?"]
FINE = {"by": "bm25", "count": 1, "tokens": 16}
ADAPT = {"on": {"kind": "evidence"}, "optimizer": {"steps": 2}}
BODY = {"document": DOCUMENT, "queries": QUERIES, "evidence": FINE, "adapt": ADAPT}

DOCUMENTS = 'refine_memory_bytes{kind="documents"}'

MakeServer = Callable[..., TestClient]


@pytest.fixture
def serve() -> Iterator[MakeServer]:
    """Return a function that starts servers of the tiny model."""
    with ExitStack() as stack:

        def start(**options: object) -> TestClient:
            defaults = {"model": "tiny", "store": "none", "shutdown_seconds": 0.3}
            app = create_app(Settings(**{**defaults, **options}))  # type: ignore[arg-type]
            client = stack.enter_context(TestClient(app))
            app.state.engine.opened.result(30)
            while client.get("/health/ready").status_code == 503:
                time.sleep(0.01)
            return client

        yield start


def ready(client: TestClient, **fields: Any) -> dict[str, Any]:
    """Make an adaptation and wait for it."""
    made = client.post("/v1/adaptations", json={**BODY, **fields})
    assert made.status_code in (200, 202), made.text
    adaptation_id = made.json()["id"]
    client.get(f"/v1/adaptations/{adaptation_id}/events")
    resource: dict[str, Any] = client.get(f"/v1/adaptations/{adaptation_id}").json()
    assert resource["status"] == "ready"
    return resource


def ask(client: TestClient, adaptation_id: str, **fields: Any) -> dict[str, Any]:
    body = {"query": QUERIES[0], "adaptation": adaptation_id, "max_tokens": 8, **fields}
    answered = client.post("/v1/answers", json=body)
    assert answered.status_code == 200, answered.text
    answer: dict[str, Any] = answered.json()
    return answer


def chat(client: TestClient, model: str, **ttt: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUERIES[0]}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, "ttt": ttt}
    answered = client.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200, answered.text
    answer: dict[str, Any] = answered.json()
    return answer


def metric(client: TestClient, name: str) -> float:
    lines = (line.split() for line in client.get("/metrics").text.splitlines())
    [value] = [fields[-1] for fields in lines if fields[0] == name]
    return float(value)


def test_queries_are_aimed_once_and_asked_many_times(serve: MakeServer) -> None:
    client = serve()
    made = ready(client)
    cited = [citation["text"].strip()[:15] for citation in made["citations"]]
    assert cited == ["The castle anim", "The market spic"]
    assert made["adapt"]["fast_weights"]["targets"] == "queries"
    for context in (None, "document", "passages", "document+passages", "best"):
        answer = ask(client, made["id"], context=context, evidence=FINE, compare_base=True)
        assert answer["adaptation"] == made["id"]
        assert answer["answered_by"] in ("adapted", "kept_base"), "the answer is guarded"
        assert answer["adaptation_report"] is None
        assert [c["text"][:15] for c in answer["citations"]] == ["The castle anim"]
        assert answer["base_answer"] is not None
    assert ready(client)["id"] == made["id"]
    assert ready(client, queries=QUERIES[:1])["id"] != made["id"]
    assert ready(client, evidence={**FINE, "count": 2})["id"] != made["id"]


def test_the_document_is_read_once_for_adaptations_answers_and_chats(serve: MakeServer) -> None:
    client = serve()
    first, second = ready(client), ready(client, queries=QUERIES[:1])
    ask(client, first["id"])
    chat(client, second["id"])
    post = {"document": DOCUMENT, "query": QUERIES[0], "max_tokens": 2}
    assert client.post("/v1/answers", json=post).is_success
    assert metric(client, "refine_document_cache_misses_total") == 1
    assert metric(client, "refine_document_cache_hits_total") == 4


def test_an_adaptation_is_a_model_with_evidence(serve: MakeServer) -> None:
    client = serve()
    made = ready(client)
    expected = ask(client, made["id"], evidence=FINE)
    told = chat(client, made["id"], evidence=FINE)
    assert told["choices"][0]["message"]["content"] == expected["answer"]
    assert told["ttt"]["adaptation"] == made["id"]
    assert told["ttt"]["citations"] == [{**c, "prompt_index": 0} for c in expected["citations"]]
    assert told["ttt"]["document_tokens"] == expected["usage"]["document_tokens"]


def test_a_chat_aims_an_adaptation_by_its_question(serve: MakeServer) -> None:
    client = serve()
    told = chat(client, "tiny", document=DOCUMENT, evidence=FINE, adapt=ADAPT)
    made = client.get(f"/v1/adaptations/{told['ttt']['adaptation']}").json()
    assert made == {**ready(client, queries=QUERIES[:1]), "expires_at": made["expires_at"]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/adaptations", {"queries": []}, "queries"),
        ("/v1/adaptations", {"queries": [" "]}, "queries.0"),
        ("/v1/adaptations", {"queries": ["a"] * 17}, "queries"),
        ("/v1/adaptations", {"adapt": {}}, "evidence"),
        ("/v1/adaptations", {"evidence": {"by": "attention"}}, "evidence.by"),
        ("/v1/completions", {"prompt": [1, 2], "ttt": BODY}, "ttt.queries"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/v1/completions", {"prompt": [f"{n}?" for n in range(65)]}, "prompt"),
    ],
)
def test_what_cannot_be_aimed_is_refused_by_name(
    serve: MakeServer, path: str, body: dict[str, Any], param: str
) -> None:
    ttt = {name: BODY[name] for name in ("document", "evidence", "adapt")}
    asked = {**BODY, **body} if path == "/v1/adaptations" else {"ttt": ttt, **body}
    refused = serve().post(path, json=asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), refused.text


def test_a_restarted_server_reads_the_document_again(serve: MakeServer, tmp_path: Path) -> None:
    store = tmp_path.as_uri()
    before = serve(store=store)
    made = ready(before, adapt={**ADAPT, "optimizer": {"steps": 2, "learning_rate": 0.05}})
    answer = ask(before, made["id"], evidence=FINE)
    after = serve(store=store)
    again = after.get(f"/v1/adaptations/{made['id']}").json()
    assert not again["in_memory"]
    assert again["citations"] == made["citations"]
    later = ask(after, made["id"], evidence=FINE)
    assert (later["answer"], later["citations"]) == (answer["answer"], answer["citations"])
    assert metric(after, "refine_document_cache_misses_total") == 1
    assert metric(after, "refine_document_cache_hits_total") == 0


def test_without_room_for_the_state_every_question_reads_the_document(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, small = serve(), serve()
    with monkeypatch.context() as patched:
        patched.setattr(MemoryBudget, "document_bytes", 0)
        without = ask(small, ready(small)["id"], evidence=FINE)["answer"]
    assert without == ask(client, ready(client)["id"], evidence=FINE)["answer"]
    assert metric(client, "refine_document_cache_misses_total") == 1
    assert metric(small, "refine_document_cache_misses_total") == 2
    assert metric(small, DOCUMENTS) == 0


def test_what_is_stored_is_small_and_has_no_state(serve: MakeServer, tmp_path: Path) -> None:
    client = serve(store=tmp_path.as_uri())
    sizes = []
    for times in (1, 20):
        document = DOCUMENT * times
        made = ready(client, document=document)
        [data] = tmp_path.rglob(f"{made['id']}/document-*.safetensors")
        sizes.append(data.stat().st_size - len(document))
        assert made["bytes"] < 10**6
    assert abs(sizes[0] - sizes[1]) < 16  # of the header
    assert metric(client, DOCUMENTS) > 0


def test_deleting_the_last_adaptation_forgets_the_documents_state(serve: MakeServer) -> None:
    client = serve()
    first, second = ready(client), ready(client, queries=QUERIES[:1])
    assert client.delete(f"/v1/adaptations/{first['id']}").is_success
    assert metric(client, DOCUMENTS) > 0  # the second one uses it
    assert client.delete(f"/v1/adaptations/{second['id']}").is_success
    assert metric(client, DOCUMENTS) == 0
    gone = client.post("/v1/answers", json={"query": "Who?", "adaptation": second["id"]})
    assert gone.status_code == 404


def test_an_adaptation_that_expires_takes_the_documents_state_along(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.05)
    client = serve()
    made = ready(client, ttl_seconds=0.3)
    end = time.monotonic() + 10
    while metric(client, DOCUMENTS):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert client.get(f"/v1/adaptations/{made['id']}").status_code == 404


def test_two_owners_share_neither_adaptation_nor_state(serve: MakeServer) -> None:
    client = serve(api_keys="ada:ada-ada-ada-ada-1,bob:bob-bob-bob-bob-1")
    made = {}
    for owner in ("ada", "bob"):
        client.headers["x-api-key"] = "-".join([owner] * 4 + ["1"])
        made[owner] = ready(client)["id"]
    assert made["ada"] != made["bob"]
    assert metric(client, "refine_document_cache_misses_total") == 2
    assert metric(client, "refine_document_cache_hits_total") == 0
    foreign = client.post("/v1/answers", json={"query": "Who?", "adaptation": made["ada"]})
    assert foreign.status_code == 404
    both = metric(client, DOCUMENTS)
    assert client.delete(f"/v1/adaptations/{made['bob']}").is_success
    assert metric(client, DOCUMENTS) == both / 2
