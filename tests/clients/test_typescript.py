"""The TypeScript client's own tests, the smoke test against a server with the tiny model."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from refine_server.server.cli.commands.demo import running_server

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"


@pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENT / "dist").exists(),
    reason="needs node and what `make typescript` builds",
)
def test_the_tests_of_the_client_pass() -> None:
    with running_server("tiny") as url:
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
    counts = {kind: int(n) for kind, n in re.findall(r"^# (\w+) (\d+)$", ran.stdout, re.M)}
    assert counts["pass"] == counts["tests"] > 40
