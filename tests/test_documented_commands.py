"""Every ``refine-server`` command in the documentation is one that the command line accepts."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from refine_server.server.cli.main import app
from refine_server.server.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    ROOT / "kernels" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks" / "results").rglob("*.md")),
]
BLOCK = re.compile(r"```(?:console|bash|sh)?\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(refine-server [^`]+)`")
SHELL = re.compile(r"\s(?:\||>|&|&&|#|;)(?:\s|$).*", re.DOTALL)
"""What follows a command on its line: pipes, redirections, comments."""


def commands_of(text: str) -> list[str]:
    """Return the ``refine-server`` commands of a page, in blocks and in sentences."""
    found = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            _, start, rest = line.strip().partition("refine-server ")
            if start and re.fullmatch(r"(\$ )?(\w+=\S+ )*", line.strip().partition(start)[0]):
                found.append(start + rest)
    found += [command for command in INLINE.findall(BLOCK.sub("", text)) if "--" in command]
    return [SHELL.sub("", re.sub(r"\$\([^)]*\)", "--data X", command)) for command in found]


COMMANDS = sorted({command for page in PAGES for command in commands_of(page.read_text())})


class Refused(Exception):
    """The command line does not accept a command; the message says why."""


def check(command: str) -> None:
    """Parse a command's arguments, without running it.

    Raises:
        Refused: the command line does not accept them.
    """
    words = [word for word in shlex.split(command)[1:] if word not in ("…", "...")]
    at: Any = typer.main.get_command(app)
    context = at.context_class(at)
    while isinstance(at, TyperGroup):
        name = words.pop(0)
        if name.startswith("-"):
            return
        subcommand = at.get_command(context, name)
        if subcommand is None:
            raise Refused(f"{name} is no command")
        at = subcommand
    if at.name in ("serve", "check"):
        options = {"--" + field.replace("_", "-") for field in Settings.model_fields} | {"--help"}
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - options
        if unknown:
            raise Refused(f"{at.name} has no option {unknown}")
        return
    try:
        at.make_parser(at.context_class(at)).parse_args(words)
    except TyperException as error:
        raise Refused(str(error)) from None


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 40
    assert any(command.startswith("refine-server bench longbench ") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_accepted(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "refine-server bench load --no-such-option 1",
        "refine-server bench nothing",
        "refine-server serve --no-such-option 1",
        "refine-server bench fuzz --seconds",
    ],
)
def test_what_the_command_line_refuses_is_found(command: str) -> None:
    with pytest.raises(Refused):
        check(command)
