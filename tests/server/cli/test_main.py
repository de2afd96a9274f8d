"""The command line as a whole: its help, its version, its process."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from refine_server.server.cli.main import main
from support.command_line import run

COMMANDS = ("serve", "answer", "adapt", "demo", "openapi", "models", "keys", "bench", "train")


def test_help_lists_the_commands_without_loading_torch_or_httpx() -> None:
    code = (
        "import sys; from refine_server.server.cli.main import app; sys.argv = ['x', '--help']\n"
        "try: app()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'httpx', 'fastapi'} & set(sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    for command in COMMANDS:
        assert f" {command} " in shown.stdout


@pytest.mark.parametrize("command", [(), ("answer",), ("bench", "load"), ("serve",)])
def test_h_is_help(command: tuple[str, ...]) -> None:
    short, long = run(*command, "-h"), run(*command, "--help")
    assert (short.exit_code, short.stdout) == (0, long.stdout)


def test_version_is_the_packages() -> None:
    shown = run("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"refine-server {version('refine-server')}\n")


def test_main_sets_the_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["refine-server", "--help"])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
