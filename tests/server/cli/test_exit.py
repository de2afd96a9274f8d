"""Every error that a user can act on ends a command with one line and the status of its kind."""

import importlib
import tomllib
from pathlib import Path

import pytest
import typer

from refine_server.benchmarks.common.rows import DataError
from refine_server.clients.errors import ConnectionFailedError, InvalidArgumentError
from refine_server.server.cli.exit import INSTALL, STATUS, InputError, exit_on_error
from refine_server.server.process import StartError
from refine_server.server.settings import SettingsError
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.models import ModelError
from refine_server.ttt.training.errors import TrainingError
from support.command_line import run_failing

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("wrong"), 2),
        (SettingsError("wrong"), 2),
        (RequestError("wrong", "query", "empty"), 2),
        (ModelError("wrong"), 2),
        (DataError("wrong"), 2),
        (TrainingError("wrong"), 2),
        (InvalidArgumentError("wrong"), 2),
        (ConnectionFailedError("wrong"), 1),
        (StartError("wrong"), 1),
    ],
)
def test_an_error_is_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    with pytest.raises(typer.Exit) as ended, exit_on_error():
        raise error
    assert ended.value.exit_code == status
    assert capsys.readouterr().err == "refine-server: wrong\n"


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, exit_on_error():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "refine-server: interrupted\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a bug"), exit_on_error():
        raise ValueError("a bug")
    with pytest.raises(ModuleNotFoundError), exit_on_error():
        importlib.import_module("refine_server.no_such_module")


def test_every_class_of_the_map_exists() -> None:
    for name in STATUS:
        module, _, cls = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), cls), Exception)


def test_a_missing_module_of_an_extra_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as ended, exit_on_error():
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.figure")
    assert ended.value.exit_code == 2
    assert "pip install 'refine-server[bench]'" in capsys.readouterr().err


def test_every_package_of_the_bench_extra_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {_module(line) for line in project["optional-dependencies"]["bench"]}
    assert extra - {_module(line) for line in project["dependencies"]} <= INSTALL.keys()


def _module(requirement: str) -> str:
    """Return the module of a requirement; all of ours have the name of their package."""
    return requirement.partition(">")[0].partition("[")[0].replace("-", "_")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("models", "inspect", "no/where/at/all", "--memory", "8GiB"), "not a directory"),
        (("bench", "report", "no-such-run"), "no-such-run"),
        (("bench", "ask", "--model", "no-such-model"), "no-such-model"),
        (("train", "mid", "--out", "OUT", "--corpus", "no-such.txt"), "no-such.txt"),
        (("train", "tiny", "--out", "OUT", "--resume"), "does not exist"),
        (("keys", "new", "a/b"), "NAME"),
        (("openapi",), "REFINE_PORT"),
    ],
)
def test_the_map_holds_for_all_commands(
    tmp_path: Path, command: tuple[str, ...], message: str
) -> None:
    arguments = [str(tmp_path) if word == "OUT" else word for word in command]
    run_failing(2, message, *arguments, env={"REFINE_PORT": "x"})
