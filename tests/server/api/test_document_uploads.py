"""Documents over HTTP: uploaded, read, named in requests, and cited by their pages."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from refine_server.clients import RefineClient
from refine_server.server.files.conversion import converter
from support.documents import pdf

PAGES = (
    "The harbour code is amber, and the master of the harbour tells it to nobody but the pilots.",
    "The castle animal is falcon, as every child in the streets below the castle knows by heart.",
    "Rain falls on the quay for most of the winter, and the ferries wait until the morning is dry.",
)
QUERY = "What is the castle animal?"
FINE = {"by": "bm25", "count": 1, "tokens": 32}


def upload(client: Any, data: bytes, name: str = "a.txt", **fields: str) -> Any:
    return client.post("/v1/documents", files={"file": (name, data)}, data=fields)


@pytest.fixture
def api(tiny_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_url, timeout=60) as client:
        yield client


@pytest.fixture
def report(api: httpx.Client) -> dict[str, Any]:
    response = upload(api, pdf(PAGES, title="Port"), "report.pdf")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_document_has_its_text_and_its_pages(api: httpx.Client, report: dict[str, Any]) -> None:
    assert report["text"] == "\n\n".join(PAGES)
    assert (report["type"], report["title"]) == ("pdf", "Port")
    assert report["characters"] == len(report["text"])
    parts = [report["text"][page["start"] : page["end"]].strip() for page in report["pages"]]
    assert parts == list(PAGES)
    assert [page["number"] for page in report["pages"]] == [1, 2, 3]
    assert report["pages"][-1]["end"] == report["characters"]
    assert api.get(f"/v1/documents/{report['id']}").json() == report


def test_it_is_a_file_of_its_owner(api: httpx.Client, report: dict[str, Any]) -> None:
    file = api.get(f"/v1/files/{report['id']}").json()
    assert (file["filename"], file["purpose"]) == ("report.pdf", "user_data")
    assert api.get(f"/v1/files/{report['id']}/content").text == report["text"]
    assert api.delete(f"/v1/files/{report['id']}").is_success
    gone = api.get(f"/v1/documents/{report['id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_not_found")


def test_citations_and_quotes_name_their_page(api: httpx.Client, report: dict[str, Any]) -> None:
    body = {"document": {"file_id": report["id"]}, "query": QUERY, "evidence": FINE}
    answer = api.post("/v1/answers", json=body).json()
    [citation] = answer["citations"]
    assert (citation["page"], "falcon" in citation["text"]) == (2, True)
    assert all(quote["page"] == 2 for quote in answer["quotes"])
    chat = {
        "messages": [{"role": "user", "content": QUERY}],
        "ttt": {"document": {"file_id": report["id"]}, "evidence": FINE},
    }
    told = api.post("/v1/chat/completions", json=chat).json()["ttt"]
    assert [cited["page"] for cited in told["citations"]] == [2]


def test_so_do_those_of_a_kept_adaptation(tiny_url: str, report: dict[str, Any]) -> None:
    adapt = {"on": {"kind": "evidence"}, "optimizer": {"steps": 1}}
    document = {"file_id": report["id"]}
    with RefineClient(tiny_url) as client:
        made = client.adapt(document, queries=[QUERY], evidence=FINE, adapt=adapt)
        ready = client.wait_for_adaptation(made.id)
        assert [citation.page for citation in ready.citations] == [2]
        answer = client.answer(QUERY, adaptation=made.id, evidence=FINE)
        assert [citation.page for citation in answer.citations] == [2]


def test_a_document_without_pages_has_citations_without(api: httpx.Client) -> None:
    made = upload(api, "\n\n".join(PAGES).encode(), "a.md").json()
    assert (made["type"], made["pages"]) == ("markdown", [])
    body = {"document": {"file_id": made["id"]}, "query": QUERY, "evidence": FINE}
    assert [c["page"] for c in api.post("/v1/answers", json=body).json()["citations"]] == [None]


def test_a_text_file_is_a_document_too(client: TestClient) -> None:
    form = {"purpose": "user_data"}
    file = client.post("/v1/files", files={"file": ("a.txt", b"grey")}, data=form).json()
    document = client.get(f"/v1/documents/{file['id']}").json()
    assert (document["text"], document["type"], document["pages"]) == ("grey", "text", [])


def test_text_that_looks_like_another_type_stays_text(client: TestClient) -> None:
    """What was read is text, whatever its first characters are."""
    made = upload(client, b"<html><p>GIF8 is a magic number", "a.html").json()
    assert client.get(f"/v1/documents/{made['id']}").json()["text"] == "GIF8 is a magic number"


@pytest.mark.parametrize(
    ("data", "name", "status", "code"),
    [
        (b"", "a.txt", 422, "unsupported_file"),
        (b" ", "a.txt", 422, "no_text"),
        (b"\x89PNG\r\n\x1a\n", "a.pdf", 422, "unsupported_file"),
        (pdf([""]), "a.pdf", 422, "no_text"),
        (pdf(["x"], password="key"), "a.pdf", 422, "encrypted_file"),
        (b"%PDF-1.4 broken", "a.pdf", 422, "damaged_file"),
    ],
)
def test_errors_name_the_file(
    client: TestClient, data: bytes, name: str, status: int, code: str
) -> None:
    response = upload(client, data, name)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, "file")


def test_a_limit_is_named(make_client: Callable[..., TestClient]) -> None:
    response = upload(make_client(max_document_pages=1), pdf(["x", "y"]))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "too_many_pages")
    assert "at most 1" in error["message"]


def test_a_large_file_is_413(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_file_bytes=1000)
    assert upload(client, b"x" * 200_000).status_code == 413


def test_other_fields_are_refused_by_name(client: TestClient) -> None:
    response = upload(client, b"x", purpose="user_data")
    assert (response.status_code, response.json()["error"]["param"]) == (422, "purpose")


def test_it_expires_when_the_request_says(client: TestClient) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "90"}
    made = upload(client, b"x", **expiry).json()
    assert made["expires_at"] - made["created_at"] == 90


def test_too_many_at_once_are_told_to_wait(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "MAX_WAITING", 0)
    response = upload(client, pdf(["x"]))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "conversions_busy")
    assert response.headers["retry-after"]


def test_the_python_client_uploads(tiny_url: str) -> None:
    with RefineClient(tiny_url) as client:
        made = client.upload_document(pdf(PAGES), "report.pdf")
        assert [page.number for page in made.pages] == [1, 2, 3]
        assert client.document(made.id) == made
