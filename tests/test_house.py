"""Structure: which folder may import which, the length of files, and a complete wheel."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "ttt", "kernels", "clients", "benchmarks", "examples")
MAY_IMPORT = {
    "kernels": {"kernels"},
    "ttt": {"ttt", "kernels"},
    "clients": {"clients"},
    "server": {"server", "ttt"},
    "server/cli": {"server", "ttt", "clients", "benchmarks"},
    "benchmarks": {"benchmarks", "clients", "server", "ttt", "kernels"},
    "examples": set(),
}
THIRD_PARTY_OF_KERNELS = {"fla", "torch", "triton", "typing_extensions"}

SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LIBRARY = Path("ttt", "library")
"""The folder that imports as ``refine_server`` itself."""
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_folders_import_only_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    folder = "server/cli" if parts[:2] == ("server", "cli") else parts[0]
    names = imports(path)
    folders = {n.split(".")[1] for n in names if n.startswith("refine_server.")} - {"model"}
    assert folders <= MAY_IMPORT[folder]
    others = {n.split(".")[0] for n in names} - {"refine_server"} - set(sys.stdlib_module_names)
    if folder == "kernels":
        assert others <= THIRD_PARTY_OF_KERNELS
    if path.is_relative_to(ROOT / "ttt" / "models"):
        allowed = tuple(f"refine_server.ttt.{n}" for n in ("models", "fast_weights", "pieces"))
        ours = {n for n in names if n.startswith("refine_server.ttt")}
        assert all(n.startswith(allowed) for n in ours)


KNOW_FORMS = (
    *(ROOT / folder for folder in ("kernels", "benchmarks", "tests/kernels")),
    ROOT / "tests/support/fla_interpreter.py",
)
FORM = re.compile(r"refine_server\.kernels\.\w+\.(naive|eager|triton)")


def test_forms_of_kernels_are_chosen_by_the_dispatcher_alone() -> None:
    """All other code calls ``dispatch.<op>``, so that REFINE_KERNELS has an effect everywhere."""
    named = {
        path.relative_to(ROOT): sorted(filter(FORM.match, imports(path)))
        for path in (*SOURCES, *(ROOT / "tests").rglob("*.py"))
        if not any(map(path.is_relative_to, KNOW_FORMS))
    }
    assert not {path: forms for path, forms in named.items() if forms}


def test_there_are_no_import_cycles() -> None:
    """Imports inside functions and for types only count, too."""
    modules = {module_name(path) for path in SOURCES}
    after = {}
    for path in SOURCES:
        names = imports(path)
        needed = {n if n in modules else n.rpartition(".")[0] for n in names} & modules
        after[module_name(path)] = needed - {module_name(path)}
    while leaves := {name for name, needed in after.items() if not needed & after.keys()}:
        after = {name: needed for name, needed in after.items() if name not in leaves}
    assert not after


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("refine_server", *parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = {p.parent.relative_to(ROOT) for p in SOURCES if p.name == "__init__.py"}
    there = {".".join(("refine_server", *folder.parts)) for folder in folders - {LIBRARY}}
    assert listed == {"refine_server", *there}


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    """Build, install and run the wheel: no other test notices a missing package or file."""
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "node_modules")
    shutil.copytree(ROOT, source, ignore=left_out)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*build, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    # Dependencies come from the environment that runs the tests; our own packages must not.
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(_site_packages())
    script = (
        "import refine_server; assert 'venv' in refine_server.__file__, refine_server.__file__; "
        "print(refine_server.load('tiny').base.num_parameters)"
    )
    subprocess.run([python, "-c", script], check=True, cwd=tmp_path, capture_output=True)
    command = tmp_path / "venv" / "bin" / "refine-server"
    shown = subprocess.run([command, "--help"], check=True, cwd=tmp_path, capture_output=True)
    assert b"answer" in shown.stdout


def _site_packages() -> str:
    import torch

    return str(Path(torch.__file__).parents[1])
