"""The rounds in which adaptations are swept go on whatever one of them meets."""

import logging
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from refine_server.server.adaptations import registry
from support.fake_backend import FakeBackend


def test_a_round_that_fails_is_logged_and_followed_by_others(
    make_client: Callable[..., TestClient],
    fake: FakeBackend,
    wait_for: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readiness turns when several fail, and turns back; adaptations answer all the while."""
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.02)
    is_broken = True

    def drop() -> None:
        if is_broken:
            raise KeyError("a fault of the server")

    client = make_client()
    made = client.post("/v1/adaptations", json={"document": "a b c"}).json()["id"]
    wait_for(lambda: client.get(f"/v1/adaptations/{made}").json()["status"] == "ready")
    with caplog.at_level(logging.ERROR, logger=registry.__name__):
        monkeypatch.setattr(fake, "drop_expired_documents", drop)
        wait_for(lambda: client.get("/health/ready").status_code == 503)
    assert client.get("/health/ready").json()["error"]["code"] == "adaptations_failed"
    assert "a fault of the server" in caplog.text
    answer = client.post("/v1/answers", json={"query": "q", "adaptation": made})
    assert answer.status_code == 200
    is_broken = False
    wait_for(lambda: client.get("/health/ready").status_code == 200)
