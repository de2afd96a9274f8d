"""The TypeScript client's own smoke test, against a server with the tiny model."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from refine_server.server.cli.demo import running_server

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"


@pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENT / "dist").exists(),
    reason="needs node and what `make typescript` builds",
)
def test_the_client_works_against_a_server() -> None:
    with running_server("tiny", Console(stderr=True)) as url:
        environment = {**os.environ, "REFINE_URL": url}
        ran = subprocess.run(
            ["npm", "test"],
            cwd=CLIENT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "# fail 0" in ran.stdout
    assert "# pass 5" in ran.stdout
