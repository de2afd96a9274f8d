"""Python processes that tests start."""

import os
from pathlib import Path


def environment() -> dict[str, str]:
    """Return the environment of a process that imports what this process can import."""
    tests = str(Path(__file__).parents[1])
    paths = [tests, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
