"""The curl recipes of docs/clients.md, run as written."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.S)
RECIPES = [block for block in BLOCKS if "curl" in block]
OUTPUTS = (
    ('"status":"ready"', '"id":"fake"'),
    ('"answer":', '"citations":'),
    ('"answer":', '"choices":', '"ttt":', '"prompt_index":0'),
    ('"answer":', '"answered_by":"adapted"'),
    ("event: request.accepted", "event: adaptation.step", "event: answer.completed"),
    ('"total_seconds":', '"admitted":true'),
    ('"answer":',),
    ("event: adaptation.ready", '"answer":', '"deleted":true'),
    ("event: adaptation.ready", '"citations":[{"start":0', '"answer":', '"deleted":true'),
    ('"param": "adapt.optimizer.steps"',),
)
"""Parts of each recipe's output."""


@pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "jq"))), reason="needs bash, curl and jq"
)
@pytest.mark.parametrize(("recipe", "outputs"), list(zip(RECIPES, OUTPUTS, strict=True)))
def test_recipes_work(
    recipe: str, outputs: tuple[str, ...], live: Callable[..., str], tmp_path: Path
) -> None:
    short = tmp_path / "short.md"  # as the scripted model requires
    short.write_text('The "code" is Amber Falcon.\n')
    script = recipe.replace("http://127.0.0.1:8000", live())
    script = script.replace("examples/tiny_example.md", str(short))
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    for text in outputs:
        assert text in ran.stdout, ran.stdout
