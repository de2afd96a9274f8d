"""The Dockerfile, without a Docker engine: it is linted, and its steps run in a clean folder."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from refine_server.server.cli.commands.demo import running_server
from refine_server.server.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$")
IMAGES = ("cpu", "cuda")


def instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [match.groups() for line in joined.splitlines() if (match := INSTRUCTION.match(line))]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, with those of the stages that it begins from."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions(TEXT):
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            current = found[stage] = list(found.get(base, []))
        else:
            current.append((name, rest))
    return found


def context(folder: Path) -> Path:
    """Copy what the build sends to the engine: what git has, without what .dockerignore names."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    ignored = [line for line in (ROOT / ".dockerignore").read_text().split() if line]
    for name in files.stdout.splitlines():
        parents = [name, *map(str, Path(name).parents)]
        if any(fnmatch.fnmatch(parent, pattern) for parent in parents for pattern in ignored):
            continue
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_it_passes_a_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    ran = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_the_cpu_image_is_the_default() -> None:
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_and_brings_no_tools_to_build(image: str) -> None:
    steps = stages()[image]
    assert [rest for name, rest in steps if name == "USER"] == ["10001"]
    assert any(name == "HEALTHCHECK" for name, _ in steps)
    assert not any("pip install" in rest for name, rest in steps if name == "RUN")
    copied = [rest for name, rest in steps if name == "COPY"]
    assert copied == [f"--from=package-{image} /opt/refine /opt/refine"]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_extras_for_development(image: str) -> None:
    (extras,) = [rest for name, rest in stages()[f"package-{image}"] if name == "ARG"]
    assert not set(extras.partition("=")[2].split(",")) & {"dev", "bench"}


@pytest.mark.parametrize("image", IMAGES)
def test_the_variables_of_an_image_are_options(image: str) -> None:
    text = " ".join(rest for name, rest in stages()[image] if name == "ENV")
    options = {name.lower() for name in re.findall(r"REFINE_(\w+)=", text)} - {"cache_dir"}
    assert options
    assert options <= set(Settings.model_fields)


def test_the_package_is_built_from_what_the_build_gets(tmp_path: Path) -> None:
    source = context(tmp_path / "src")
    for name in ("pyproject.toml", "constraints.txt", "deploy/requirements.txt"):
        assert (source / name).exists(), name
    assert not (source / "tests").exists()
    assert not (source / ".git").exists()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*build, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert "refine_server/server/replicas/application.py" in names
    assert not any(name.startswith("tests/") for name in names)


def test_every_dependency_of_the_image_is_pinned_as_elsewhere() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if "==" in line]
        pairs = [line.split("==") for line in lines if not line.startswith("#")]
        return {canonicalize_name(name): version for name, version in pairs}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned, constraints = pins(ROOT / "deploy" / "requirements.txt"), pins(ROOT / "constraints.txt")
    extras = project["optional-dependencies"]
    (argument,) = [rest for name, rest in stages()["package-cpu"] if name == "ARG"]
    chosen = [*argument.partition("=")[2].split(","), "ray"]
    needed = [*project["dependencies"], *(text for extra in chosen for text in extras[extra])]
    for requirement in map(Requirement, needed):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
    common = set(pinned) & set(constraints)
    assert {name: pinned[name] for name in common} == {name: constraints[name] for name in common}


def test_its_health_check_tells_a_server_from_none() -> None:
    (check,) = [rest for name, rest in stages()["cpu"] if name == "HEALTHCHECK"]
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"
    with running_server("tiny") as url:
        port = url.rpartition(":")[2]
        script = command[2].replace(":8000/", f":{port}/")
        assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode != 0
