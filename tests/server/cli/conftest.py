from pathlib import Path

import pytest

from refine_server.server.cli import event_sources
from support.fake_backend import FakeBackend


@pytest.fixture
def document(tmp_path: Path) -> str:
    path = tmp_path / "log.md"
    path.write_text("a b c")
    return str(path)


@pytest.fixture
def in_process(fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """Replace the model that answers in this process by the scripted backend."""
    monkeypatch.setattr(event_sources, "open_backend", fake.open)
    return fake
