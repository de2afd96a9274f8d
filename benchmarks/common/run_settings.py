"""The settings of a run in a folder, so that a run is continued under its own settings only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.files import write_text
from refine_server.benchmarks.common.rows import DataError

SETTINGS, RESULTS = "settings.json", "results.jsonl"


def begin_run(folder: Path, settings: Mapping[str, Any], resume: bool) -> Path:
    """Begin a run in a folder, or go on with the one that is there; return its results' path.

    Args:
        folder: of the run.
        settings: everything that a single result depends on.
        resume: whether a run that is there is continued.

    Raises:
        DataError: the folder has a run that is not to be continued, or one with other settings.
    """
    path, described = folder / RESULTS, folder / SETTINGS
    now = json.loads(json.dumps(settings))
    if not path.exists():
        write_text(described, json.dumps(now, indent=1) + "\n")
        return path
    if not resume:
        raise DataError(
            f"--out: {folder} has a run; continue it with --resume, or choose another folder"
        )
    try:
        before = json.loads(described.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--resume: cannot read {described}: {error}") from None
    changed = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    if changed:
        told = "; ".join(f"{n} was {before.get(n)!r}, is {now.get(n)!r}" for n in changed)
        raise DataError(f"--resume: the run in {folder} has other settings: {told}")
    return path
