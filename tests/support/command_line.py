"""``refine-server`` in this process."""

from typing import Any

from typer.testing import CliRunner, Result

from refine_server.server.cli.main import app


def run(*arguments: object, **options: Any) -> Result:
    """Run ``refine-server`` with arguments; options are those of ``CliRunner.invoke``."""
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def run_failing(status: int, message: str, *arguments: object, **options: Any) -> None:
    """Check that a command ends with a status and with a line on stderr that has a message."""
    shown = run(*arguments, **options)
    assert shown.exit_code == status, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.output
    assert isinstance(shown.exception, SystemExit)
