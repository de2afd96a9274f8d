"""A server in a process of its own: these tests run in an environment without the server."""

import os
import subprocess
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Run a server with the tiny model; yield the base URL of its OpenAI-compatible routes."""
    command = [os.environ["SERVER_COMMAND"], "serve", "--model", "tiny", "--port", "0"]
    process = subprocess.Popen([*command, "--store", "none"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = ""
    for line in process.stderr:
        if "listening on " in line:
            address = line.partition("listening on ")[2].partition(",")[0]
        if "ready: " in line:
            break
    try:
        assert address
        yield f"{address}/v1"
    finally:
        process.terminate()
        process.stderr.read()
        process.wait(30)
