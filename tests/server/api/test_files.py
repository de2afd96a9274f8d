"""Files over HTTP: uploaded, listed, read, deleted, and used as documents."""

import base64
import gzip
from collections.abc import Callable
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from refine_server.server.access.keys import new_key
from refine_server.server.files import registry
from support.live_server import wait_for

DOCUMENT = (
    "The harbour code is amber. The bakery owner is Tobias Hartley.\n\n"
    "The castle animal is falcon. The garden flower is orchid."
)
QUERY = "What is the castle animal?"
FINE = {"by": "bm25", "count": 1, "tokens": 16}


def upload(
    client: Any, data: bytes = b"some text", name: str = "a.txt", status: int = 200, **fields: str
) -> dict[str, Any]:
    form = {"purpose": "user_data", **fields}
    response = client.post("/v1/files", files={"file": (name, data)}, data=form)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found if status == 200 else found["error"]


# -- the resource ---------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["user_data", "assistants", "batch"])
def test_a_file_is_kept_until_it_is_deleted(client: TestClient, purpose: str) -> None:
    made = upload(client, "grün".encode(), "Bericht ä.txt", purpose=purpose)
    assert made["object"] == "file"
    assert (made["bytes"], made["filename"]) == (5, "Bericht ä.txt")
    assert (made["purpose"], made["status"]) == (purpose, "processed")
    assert made["expires_at"] - made["created_at"] == 30 * 24 * 3600
    path = f"/v1/files/{made['id']}"
    assert client.get(path).json() == made
    content = client.get(f"{path}/content")
    assert content.content == "grün".encode()
    assert content.headers["content-type"] == "application/octet-stream"
    assert client.head(path).status_code == 200
    deleted = client.delete(path).json()
    assert deleted == {"id": made["id"], "object": "file", "deleted": True}
    for gone in (client.get(path), client.get(f"{path}/content"), client.delete(path)):
        error = gone.json()["error"]
        assert (gone.status_code, error["code"], error["param"]) == (
            404,
            "file_not_found",
            "file_id",
        )


def test_files_are_listed_in_pages(client: TestClient) -> None:
    ids = [upload(client, name=f"{n}.txt")["id"] for n in range(5)]
    ids.append(upload(client, purpose="batch")["id"])
    whole = client.get("/v1/files").json()
    assert [f["id"] for f in whole["data"]] == ids[::-1]
    assert (whole["first_id"], whole["last_id"], whole["has_more"]) == (ids[5], ids[0], False)
    page = client.get("/v1/files", params={"limit": 2, "order": "asc", "after": ids[1]}).json()
    assert [f["id"] for f in page["data"]] == ids[2:4]
    assert page["has_more"]
    assert len(client.get("/v1/files", params={"purpose": "batch"}).json()["data"]) == 1
    assert client.get("/v1/files", params={"after": "file-x"}).status_code == 404
    assert client.get("/v1/files", params={"limit": 0}).json()["error"]["param"] == "limit"


def test_another_owner_sees_nothing_of_a_file(make_client: Callable[..., TestClient]) -> None:
    client = make_client(api_keys="alice:alice-alice-alice-1,bob:bob-bob-bob-bob-1")
    client.headers["authorization"] = "Bearer alice-alice-alice-1"
    made = upload(client)["id"]
    client.headers["authorization"] = "Bearer bob-bob-bob-bob-1"
    assert client.get("/v1/files").json()["data"] == []
    unknown = client.get("/v1/files/file-0").json()["error"]["message"]
    for path in (f"/v1/files/{made}", f"/v1/files/{made}/content"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["message"] == unknown.replace("file-0", made)
    assert client.delete(f"/v1/files/{made}").status_code == 404
    body = {"document": {"file_id": made}, "query": "q"}
    error = client.post("/v1/answers", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("file_not_found", "document.file_id")


def test_a_file_expires(client: TestClient, wait_for: Callable[..., None]) -> None:
    after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}
    made = upload(client, **after)
    assert made["expires_at"] - made["created_at"] == 1
    wait_for(lambda: client.get(f"/v1/files/{made['id']}").status_code == 404)
    assert client.get("/v1/files").json()["data"] == []


UNFIT: list[tuple[bytes, str]] = [
    (b"%PDF-1.7\n1 0 obj", "PDF"),
    (b"PK\x03\x04abc", "ZIP"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff\xe0", "JPEG"),
    ("text".encode("utf-16"), "UTF-16"),
    (b"caf\xe9", "byte 3 is invalid"),
    (b"\xed\xa0\xbd", "byte 0 is invalid"),
    (b"", "is empty"),
]


@pytest.mark.parametrize(("data", "reason"), UNFIT)
def test_what_is_no_text_is_refused_by_its_type(
    client: TestClient, data: bytes, reason: str
) -> None:
    error = upload(client, data, "report", status=422)
    assert (error["param"], error["code"]) == ("file", "unsupported_file")
    assert reason in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "magic"}, "purpose"),
        ({"colour": "red"}, "colour"),
        ({"expires_after[seconds]": "60"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "60"}, "expires_after.anchor"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "x"},
            "expires_after.seconds",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "99999999"},
            "expires_after.seconds",
        ),
    ],
)
def test_a_field_of_the_form_is_refused_by_name(
    client: TestClient, fields: dict[str, str], param: str
) -> None:
    assert upload(client, status=422, **fields)["param"] == param


def test_other_forms_are_refused(client: TestClient) -> None:
    def error(status: int, **request: Any) -> dict[str, Any]:
        response = client.post("/v1/files", **request)
        assert response.status_code == status, response.text
        found: dict[str, Any] = response.json()["error"]
        return found

    assert error(422, json={"purpose": "batch"})["param"] == "body"
    assert error(422, data={"purpose": "batch", "file": "text"})["param"] == "body"
    assert error(422, files={"purpose": (None, "batch")})["param"] == "file"
    two = [("file", ("a", b"a")), ("file", ("b", b"b"))]
    assert error(422, files=two, data={"purpose": "batch"})["param"] == "file"
    assert error(422, files={"other": ("a", b"a")})["param"] == "other"
    headers = {"content-type": "multipart/form-data"}
    assert error(400, content=b"x", headers=headers)["code"] == "invalid_body"
    for charset in ("idna", "punycode", "utf-7", "nowhere", "rot13"):
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        body = b'--x\r\ncontent-disposition: form-data; name="\xff\xfe"\r\n\r\n\xff\r\n--x--\r\n'
        response = client.post("/v1/files", content=body, headers={"content-type": kind})
        assert response.status_code in (400, 422)


def test_sizes_are_bounded(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_file_bytes=100_000, file_bytes=150_000, max_body_bytes=1000)
    assert upload(client, b"[" * 90_000)["bytes"] == 90_000  # JSON, which is not parsed
    assert upload(client, b"a" * 200_000, status=413)["code"] == "body_too_large"
    error = upload(client, b"a" * 90_000, status=413)
    assert error["code"] == "file_storage_full"
    assert "--file-bytes" in error["message"]
    metrics = client.get("/metrics").text
    assert "refine_files 1.0" in metrics
    assert "refine_file_bytes 90000.0" in metrics


def test_a_key_has_a_quota_of_bytes(make_client: Callable[..., TestClient], tmp_path: Path) -> None:
    key, entry = new_key("alice")
    keys = tmp_path / "keys.toml"
    keys.write_text(entry.toml() + "quotas = { file_bytes = 10 }\n")
    client = make_client(api_keys_file=keys)
    client.headers["authorization"] = f"Bearer {key}"
    made = upload(client, b"12345678")
    assert upload(client, b"123", status=413)["code"] == "quota_file_bytes"
    client.delete(f"/v1/files/{made['id']}")
    upload(client, b"123")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/"])
def test_a_form_may_be_compressed_and_counts_as_it_is_unpacked(
    make_client: Callable[..., TestClient], path: str
) -> None:
    client = make_client(max_file_bytes=1000)
    form = client.build_request(
        "POST", path, files={"file": ("a", b"a" * 1000)}, data={"purpose": "batch"}
    )
    kind = form.headers["content-type"]
    for size, status in ((1000, 200), (500_000, 413)):
        data = form.read().replace(b"a" * 1000, b"a" * size)
        headers = {"content-type": kind, "content-encoding": "gzip"}
        response = client.post(path, content=gzip.compress(data), headers=headers)
        assert response.status_code == status, response.text


# -- as documents ---------------------------------------------------------------------------------


def test_a_file_is_the_document_of_every_route(tiny_url: str) -> None:
    with httpx.Client(base_url=tiny_url, timeout=60) as client:

        def post(path: str, **body: Any) -> dict[str, Any]:
            response = client.post(path, json={"max_tokens": 8, **body})
            assert response.is_success, response.text
            found: dict[str, Any] = response.json()
            return found

        made = {"file_id": upload(client, b"\xef\xbb\xbf" + DOCUMENT.encode())["id"]}
        asked = {"query": QUERY, "evidence": FINE}
        expected = post("/v1/answers", document=DOCUMENT, **asked)
        told = post("/v1/answers", document=made, **asked)
        assert told["answer"] == expected["answer"] == " falcon"
        assert told["citations"] == expected["citations"]

        ttt = {"evidence": FINE}
        text = {"type": "text", "text": QUERY}
        url = "data:text/plain;base64," + base64.b64encode(DOCUMENT.encode()).decode()
        files: list[dict[str, str]] = [
            made,
            {"file_data": DOCUMENT, "filename": "a.txt"},
            {"file_data": url},
            {"file_data": url.partition(",")[2]},
        ]
        for file in files:
            parts = [{"type": "file", "file": file}, text]
            messages = [{"role": "user", "content": parts}]
            chat = post("/v1/chat/completions", messages=messages, temperature=0, ttt=ttt)
            assert chat["choices"][0]["message"]["content"] == " falcon"
            assert [c["text"] for c in chat["ttt"]["citations"]] == [
                c["text"] for c in expected["citations"]
            ]
        chat = post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": QUERY}],
            temperature=0,
            ttt={"document": made, **ttt},
        )
        assert chat["choices"][0]["message"]["content"] == " falcon"

        adapt = {"optimizer": {"steps": 1}, "rollouts": {"positions": 2}}
        response = client.post("/v1/adaptations", json={"document": made, "adapt": adapt})
        assert response.is_success
        joined = client.post("/v1/adaptations", json={"document": DOCUMENT, "adapt": adapt})
        assert joined.json()["id"] == response.json()["id"]


def test_a_conversation_may_have_its_file_in_every_turn(client: TestClient) -> None:
    file = {"type": "file", "file": {"file_id": upload(client, b"a log")["id"]}}
    turn = {"role": "user", "content": [file, {"type": "text", "text": "q"}]}
    messages = [turn, {"role": "assistant", "content": "a"}, turn]
    response = client.post("/v1/chat/completions", json={"messages": messages})
    assert response.json()["ttt"]["document_tokens"] == 5


def chat_with(*files: dict[str, Any], **fields: Any) -> dict[str, Any]:
    parts = [{"type": "file", "file": file} for file in files]
    return {"messages": [{"role": "user", "content": parts}], **fields}


UNFIT_FILES: list[tuple[str, dict[str, Any], int, str]] = [
    ("/v1/answers", {"document": {"file_id": "file-0"}, "query": "q"}, 404, "document.file_id"),
    ("/v1/answers", {"document": {"file_id": ""}, "query": "q"}, 422, "document.file_id"),
    ("/v1/answers", {"document": {"file_id": "x", "file": "x"}, "query": "q"}, 422,
     "document.file"),
    ("/v1/answers", {"document": {}, "query": "q"}, 422, "document.file_id"),
    ("/v1/answers", {"document": 5, "query": "q"}, 422, "document"),
    ("/v1/adaptations", {"document": {"file_id": "../x"}}, 404, "document.file_id"),
    ("/v1/completions", {"prompt": "a", "ttt": {"document": {"file_id": "x"}}}, 404,
     "ttt.document.file_id"),
    ("/v1/chat/completions", chat_with({"file_id": "x"}), 404,
     "messages.0.content.0.file.file_id"),
    ("/v1/chat/completions", chat_with({}), 422, "messages.0.content.0.file"),
    ("/v1/chat/completions", chat_with({"file_id": "x", "file_data": "y z"}), 422,
     "messages.0.content.0.file"),
    ("/v1/chat/completions", chat_with({"file_url": "http://x/y"}), 422,
     "messages.0.content.0.file.file_url"),
    ("/v1/chat/completions", chat_with({"file_data": "a b"}, {"file_data": "c d"}), 422,
     "messages.0.content.1.file"),
    ("/v1/chat/completions", chat_with({"file_data": "a b"}, ttt={"document": "c"}), 422,
     "messages.0.content.0.file"),
    ("/v1/chat/completions", chat_with({"file_data": "a b"}, model="adapt-0"), 422,
     "messages.0.content.0.file"),
    ("/v1/chat/completions", chat_with({"file_data": " "}), 422,
     "messages.0.content.0.file.file_data"),
    ("/v1/chat/completions", chat_with({"file_data": "data:application/pdf;base64,JVBERi0xLjc="}),
     422, "messages.0.content.0.file.file_data"),
    ("/v1/chat/completions", chat_with({"file_data": "data:text/plain;base64,a"}), 422,
     "messages.0.content.0.file.file_data"),
    ("/v1/chat/completions", chat_with({"file_data": "data:nothing"}), 422,
     "messages.0.content.0.file.file_data"),
    ("/v1/adaptations", {"document": {"file": "x"}}, 422, "document.file_id"),
    ("/tokenize", chat_with({"file_data": "a b"}), 422, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param"), UNFIT_FILES)
def test_a_file_that_cannot_be_read_is_refused_by_its_field(
    client: TestClient, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    for stream in (False, True):
        sent = body if path == "/tokenize" or path == "/v1/adaptations" else {"stream": stream}
        response = client.post(path, json={**body, **sent})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (status, param), error
        assert error["message"].startswith(f"{param}: ")


def test_a_file_that_is_too_long_is_refused_by_its_field(client: TestClient) -> None:
    made = upload(client, b"long " * 60_000)["id"]
    file = {"type": "file", "file": {"file_id": made}}
    messages = [{"role": "user", "content": [file, {"type": "text", "text": "q"}]}]
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/chat/completions", {"messages": messages}, "messages.0.content.0.file.file_id"),
        ("/v1/answers", {"document": {"file_id": made}, "query": "q"}, "document"),
    ]
    for path, body, param in asked:
        response = client.post(path, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (413, param)


def test_a_file_of_white_space_is_refused_where_it_is_read(client: TestClient) -> None:
    made = upload(client, b" \n")["id"]
    body = {"document": {"file_id": made}, "query": "q"}
    error = client.post("/v1/answers", json=body).json()["error"]
    assert error["param"] == "document.file_id"
    assert "white space" in error["message"]


# -- the store ------------------------------------------------------------------------------------


def test_files_survive_a_restart_with_a_store(
    make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    store = (tmp_path / "store").as_uri()
    first = make_client(store=store)
    made, deleted = upload(first, DOCUMENT.encode()), upload(first)
    first.delete(f"/v1/files/{deleted['id']}")
    second = make_client(store=store)
    assert second.get("/v1/files").json()["data"] == [made]
    assert second.get(f"/v1/files/{made['id']}/content").content == DOCUMENT.encode()
    (tmp_path / "store" / "files" / f"{made['id']}.data").write_bytes(b"changed")
    lost = second.get(f"/v1/files/{made['id']}/content")
    assert (lost.status_code, lost.json()["error"]["code"]) == (409, "file_lost")
    assert second.delete(f"/v1/files/{made['id']}").status_code == 200
    assert list((tmp_path / "store" / "files").iterdir()) == []


def test_a_file_is_found_and_deleted_through_another_server(
    make_client: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.02)
    first, second = (make_client(store=tmp_path.as_uri()) for _ in range(2))
    made = upload(first, DOCUMENT.encode())
    assert second.get(f"/v1/files/{made['id']}").json() == made
    assert second.get(f"/v1/files/{made['id']}/content").content == DOCUMENT.encode()
    other = upload(first, b"listed")
    wait_for(lambda: len(second.get("/v1/files").json()["data"]) == 2)
    assert second.delete(f"/v1/files/{other['id']}").status_code == 200
    wait_for(lambda: first.get(f"/v1/files/{other['id']}").status_code == 404)


def test_files_are_kept_in_memory_where_the_store_fails(
    make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    (tmp_path / "files").write_text("not a folder")
    client = make_client(store=tmp_path.as_uri())
    made = upload(client, b"kept")
    assert client.get(f"/v1/files/{made['id']}/content").content == b"kept"


# -- OpenAI's own client --------------------------------------------------------------------------


def test_openais_client(tiny_url: str) -> None:
    with openai.OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0) as client:
        made = client.files.create(
            file=("report.txt", DOCUMENT.encode()),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert made.expires_at == made.created_at + 3600
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).read() == DOCUMENT.encode()
        assert made.id in [file.id for file in client.files.list(limit=1)]
        chat = client.chat.completions.create(
            model="tiny",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "file", "file": {"file_id": made.id}},
                        {"type": "text", "text": QUERY},
                    ],
                }
            ],
            temperature=0,
            max_tokens=8,
        )
        assert chat.choices[0].message.content == " falcon"
        assert client.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError) as gone:
            client.files.retrieve(made.id)
        assert gone.value.code == "file_not_found"


def test_no_upload_is_written_to_a_temporary_file(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one stays in memory, too: documents are not for a folder that others may read."""

    def write(_: object) -> None:
        raise AssertionError("it is written to a file")

    monkeypatch.setattr(SpooledTemporaryFile, "rollover", write)
    made = upload(client, b"a" * 3_000_000, "../../etc/passwd")
    assert made["filename"] == "../../etc/passwd"
