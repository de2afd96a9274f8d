"""The page's own tests, and its committed files: what a fresh build of ``web/`` gives."""

import filecmp
import shutil
import subprocess
from pathlib import Path

import pytest

from refine_server.server.ui.page import STATIC

WEB = Path(__file__).parents[2] / "web"

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None or not (WEB / "node_modules").exists(),
    reason="needs npm and `npm ci` in web/",
)


def run(*command: str) -> None:
    ran = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_committed_files_are_those_of_a_fresh_build(tmp_path: Path) -> None:
    run("npm", "run", "build", "--", "--outDir", str(tmp_path))
    built = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(STATIC) for path in STATIC.rglob("*") if path.is_file()}
    assert built == committed
    differing = [p for p in built if not filecmp.cmp(tmp_path / p, STATIC / p, shallow=False)]
    assert not differing, "run `make page` and commit server/ui/static"


def test_the_tests_of_the_page_pass() -> None:
    run("npm", "test")
