"""The first request of the README, and the curl recipes of docs/clients.md and docs/documents.md,
run as written."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE = re.compile(r"```console\n(.*?)```", re.S)
DOCS = ROOT / "docs" / "clients.md", ROOT / "docs" / "documents.md"
BLOCKS = [block for path in DOCS for block in CONSOLE.findall(path.read_text())]
RECIPES = [block for block in BLOCKS if "curl" in block]
FIRST_REQUEST = next(
    block.partition("$ curl")[2]
    for block in CONSOLE.findall((ROOT / "README.md").read_text())
    if "$ curl" in block
)
RECIPES.insert(0, f"curl{FIRST_REQUEST}")
ADAPTED = '"answered_by":"adapted"'
OUTPUTS = (
    ('"answer":', ADAPTED),
    ('"status":"ready"', '"id":"fake"'),
    ('"answer":', '"citations":', ADAPTED),
    ('"answer":', '"choices":', '"ttt":', '"prompt_index":0', ADAPTED),
    ('"answer":', ADAPTED),
    ("event: request.accepted", "event: adaptation.step", "event: answer.completed", ADAPTED),
    ('"total_seconds":', '"admitted":true'),
    ('"answer":', ADAPTED),
    ('"answer":', ADAPTED, '"object":"file","deleted":true'),
    ("event: adaptation.ready", '"answer":', ADAPTED, '"deleted":true'),
    ("event: adaptation.ready", '"citations":[{"start":0', '"answer":', ADAPTED, '"deleted":true'),
    ('"param": "adapt.optimizer.steps"',),
    ('"object":"document"', '"answer":', '"object":"file","deleted":true'),
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
