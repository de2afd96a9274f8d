"""The client installs alone: without torch, and without the server."""

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from refine_server.server.cli.commands.demo import running_server

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients"
SCRIPT = """
import importlib.util, sys
assert importlib.util.find_spec("torch") is None
assert importlib.util.find_spec("fastapi") is None
from refine_server.clients import RefineClient
with RefineClient(sys.argv[1]) as client:
    adaptation = client.adapt("The castle animal is falcon. The harbour code is amber.")
    made = client.wait_for_adaptation(adaptation.id)
    print(client.answer("What is the castle animal?", adaptation=made.id).model)
"""


def dependencies_of(names: list[str]) -> set[str]:
    """Return the names of distributions and of all that they need."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            needed = map(Requirement, distribution(name).requires or ())
            names += [r.name for r in needed if r.marker is None or r.marker.evaluate()]
    return found


def install(names: set[str], folder: Path) -> None:
    """Link what distributions of this environment have into another environment."""
    for name in names:
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution(name).locate_file(top))).resolve())


def test_it_works_in_an_environment_without_torch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("typescript", "__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*build, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(packages)
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    needed = dependencies_of([Requirement(text).name for text in project["dependencies"]])
    assert len(needed) < 15
    install(needed, packages)
    with running_server("tiny") as url:
        command = [python, "-I", "-c", SCRIPT, url]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "tiny"


def test_its_version_and_its_dependencies_are_those_of_the_server() -> None:
    client = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert client["version"] == server["version"]
    assert set(client["dependencies"]) <= set(server["dependencies"])
    assert client["requires-python"] == server["requires-python"]
