"""Someone who studies adaptation: runs a benchmark and looks at its rows."""

import json
import subprocess
import sys
from pathlib import Path

from refine_server.benchmarks.robustness.users.checks import Checks


def study(model: str, folder: Path, checks: Checks) -> None:
    """Run ``bench adaptation --quick`` and look at what it wrote."""
    out = folder / "adaptation"
    # -P keeps the working directory off sys.path, where `kernels` would shadow a package.
    command = [sys.executable, "-P", "-m", "refine_server.server.cli.main", "bench", "adaptation"]
    command += ["--model", model, "--quick", "--out", str(out), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True)
    checks.check("the benchmark ends with status 0", ran.returncode == 0, ran.stderr[-500:])
    with checks.step("rows"):
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        checks.check("there are rows", rows)
        for row in rows:
            is_score = isinstance(row.get("score"), int | float) and 0 <= row["score"] <= 100
            checks.check("a row has a score", is_score, row)
        checks.check("the last line is the summary", json.loads(ran.stdout.splitlines()[-1]))
