"""Keys and quotas that are replaced while the server runs."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.server.access.keys import KeyEntry, Keyring, Quotas, new_key
from refine_server.server.access.quotas import QuotaKeeper
from refine_server.server.http.errors import ApiError
from refine_server.server.process import Server


def entry(name: str, requests_per_minute: int | None = None) -> tuple[str, KeyEntry]:
    key, made = new_key(name)
    return key, made.model_copy(update={"quotas": Quotas(requests_per_minute=requests_per_minute)})


def test_a_key_with_the_same_quotas_keeps_its_usage_and_a_changed_one_starts_anew() -> None:
    _, same = entry("same", 1)
    _, changed = entry("changed", 1)
    keyring = Keyring((same, changed))
    quotas = QuotaKeeper(keyring, lambda: 0.0)
    for name in ("same", "changed"):
        quotas.take_request(name)
    more = changed.model_copy(update={"quotas": Quotas(requests_per_minute=2)})
    keyring.replace((same, more))
    quotas.refresh()
    quotas.take_request("changed")
    quotas.take_request("changed")
    with pytest.raises(ApiError, match="requests_per_minute"):
        quotas.take_request("changed")
    with pytest.raises(ApiError, match="requests_per_minute"):
        quotas.take_request("same")


def test_a_request_that_began_before_counts_among_those_at_the_same_time() -> None:
    _, one = new_key("a")
    limited = one.model_copy(update={"quotas": Quotas(concurrent_requests=1)})
    keyring = Keyring((one,))
    quotas = QuotaKeeper(keyring, lambda: 0.0)
    with quotas.request(keyring.principals["a"]):
        keyring.replace((limited,))
        quotas.refresh()
        with (
            pytest.raises(ApiError, match="concurrent_requests"),
            quotas.request(keyring.principals["a"]),
        ):
            pass
    with quotas.request(keyring.principals["a"]):
        pass


@pytest.mark.anyio
async def test_a_reload_replaces_keys_and_an_invalid_file_changes_nothing(
    make_app: Callable[..., FastAPI], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "keys.toml"
    old_key, old = entry("old")
    new, added = entry("new")
    file.write_text(old.toml())
    app = make_app(api_keys_file=file)
    server, client = Server(app, app.state.settings), TestClient(app)

    def status(key: str) -> int:
        return client.get("/version", headers={"x-api-key": key}).status_code

    assert (status(old_key), status(new)) == (200, 401)
    file.write_text(added.toml())
    server.handle_reload(1, None)
    assert (status(old_key), status(new)) == (200, 401)
    await server.on_tick(1)
    assert (status(old_key), status(new)) == (401, 200)
    file.write_text(f"# {new}\nkeys = 1")
    server.handle_reload(1, None)
    await server.on_tick(1)
    assert (status(old_key), status(new)) == (401, 200)
    assert "the API keys stay as they were" in caplog.text
    assert new not in caplog.text
