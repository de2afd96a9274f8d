"""``refine-server trace``: pictures of a run that was traced."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from refine_server.server.cli.exit import InputError

app = typer.Typer(no_args_is_help=True, help="Look at a run that `answer --trace` has written.")

MISSING = "plotting needs matplotlib: pip install 'refine-server[plot]'"


@app.callback()
def trace() -> None:
    """Look at a run that was traced."""


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(help="File that `refine-server answer --trace` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path(),
    image: Annotated[
        str, typer.Option("--format", help="Type of the pictures: png, svg or pdf.")
    ] = "png",
) -> None:
    """Draw the document, the steps, the rollouts and the change of the layers."""
    run = read_trace(file)
    if image not in ("png", "svg", "pdf"):
        raise InputError(f"--format must be png, svg or pdf, not {image!r}")
    try:
        from refine_server.server.cli.trace_plots.pictures import draw
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise InputError(MISSING) from None
    for path in draw(run, out, image):
        typer.echo(path)


def write_trace(path: Path, request: dict[str, Any], response: dict[str, Any]) -> None:
    """Write a traced run to a file.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps({"request": request, "response": response}))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def read_trace(path: Path) -> dict[str, Any]:
    """Read the response of a traced run.

    Raises:
        InputError: the file cannot be read, or has no trace.
    """
    try:
        run = json.loads(path.read_bytes())
        response: dict[str, Any] = run["response"]
        if response["trace"] is None:
            raise InputError(f"{path} has a run without a trace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        message = f"{path} is no trace; refine-server answer --trace {path} writes one"
        raise InputError(message) from None
    return response
