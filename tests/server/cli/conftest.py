"""The command line in this process, with the scripted model in place of a real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refine_server.server.cli import event_sources
from refine_server.server.cli.main import app

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    """Runs ``refine-server`` with arguments; the result has exit_code, stdout and stderr."""

    def invoke(*arguments: str, **options: Any) -> Any:
        return CliRunner().invoke(app, list(arguments), **options)

    return invoke


@pytest.fixture
def fails(run: Run) -> Callable[..., None]:
    """Checks that a command ends with a status and a line on stderr that contains a message."""

    def check(status: int, message: str, *arguments: str, **options: Any) -> None:
        shown = run(*arguments, **options)
        assert shown.exit_code == status, shown.output
        assert message in shown.stderr
        assert "Traceback" not in shown.output
        assert isinstance(shown.exception, SystemExit)

    return check


@pytest.fixture
def document(tmp_path: Path) -> str:
    path = tmp_path / "log.md"
    path.write_text("a b c")
    return str(path)


@pytest.fixture
def in_process(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers in this process come from the scripted model."""
    monkeypatch.setattr(event_sources, "open_backend", fake.open)
    return fake
