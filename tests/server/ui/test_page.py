"""The page's files: served without a key, under a strict policy, and off with ``--no-ui``."""

import re
from collections.abc import Callable

from starlette.testclient import TestClient

from refine_server.server.ui.page import STATIC

KEYS = "alice:0123456789abcdef0123456789abcdef"
FILES = sorted(f"/ui/{path.name}" for path in (STATIC / "ui").iterdir())


def test_the_page_and_what_it_loads_need_no_key(
    make_client: Callable[..., TestClient],
) -> None:
    client = make_client(api_keys=KEYS)
    assert client.get("/v1/models").status_code == 401
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="\./(ui/[^"]+)"', page.text)
    assert len(loaded) == 3
    for path in loaded:
        assert client.get(f"/{path}").status_code == 200


def test_nothing_is_inline_or_from_elsewhere(client: TestClient) -> None:
    for path in ("/", *FILES):
        response = client.get(path)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]* src=)|<style|style=|https?:", page)


def test_a_browser_asks_whether_a_file_changed(client: TestClient) -> None:
    for path in ("/", *FILES):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304


def test_no_other_file_is_served(client: TestClient) -> None:
    for path in ("/ui/missing.js", "/ui/../index.html", "/ui/%2e%2e/page.py", "/ui"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"


def test_the_page_can_be_turned_off(make_client: Callable[..., TestClient]) -> None:
    client = make_client(ui=False)
    for path in ("/", *FILES):
        assert client.get(path).status_code == 404
    assert client.get("/v1/models").status_code == 200
