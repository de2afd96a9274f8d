"""What the benches' commands share: options, errors told plainly, results printed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import typer

from refine_server.clients import ClientError
from refine_server.clients.arguments import encode_body
from refine_server.clients.errors import InvalidArgumentError
from refine_server.clients.types import AdaptOptions

OBJECTIVES = ("none", "ntp", "refine")
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


@contextmanager
def told_plainly() -> Iterator[None]:
    """One line on stderr instead of a traceback, for whatever a user can put right."""
    from refine_server.benchmarks.rows import DataError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("refine-server: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (DataError, InvalidArgumentError) as error:
        typer.echo(f"refine-server: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except ClientError as error:
        typer.echo(f"refine-server: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except ModuleNotFoundError as error:
        wanted = f"{error.name} is not installed: pip install 'refine-server[bench]'"
        typer.echo(f"refine-server: {wanted}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def names_of(text: str | None) -> list[str]:
    """The names of a list with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def numbers_of(text: str, option: str) -> list[int]:
    """The numbers of a list with commas."""
    try:
        numbers = [int(name) for name in names_of(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{option}: positive whole numbers, with commas")
    return numbers


def objectives_of(text: str) -> list[str]:
    """Objectives from a list with commas."""
    names = names_of(text)
    if not names or len(set(names)) < len(names) or not set(names) <= set(OBJECTIVES):
        raise typer.BadParameter(f"--objectives: some of {','.join(OBJECTIVES)}, once each")
    return names


def adapt_of(text: str) -> AdaptOptions:
    """Fields of ``adapt`` from JSON; the server checks them."""
    try:
        fields = json.loads(text)
        encode_body({"--adapt": fields})  # Python reads NaN, which is no JSON
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        raise typer.BadParameter(f"--adapt: no JSON: {error}") from None
    if not isinstance(fields, dict) or "objective" in fields:
        raise typer.BadParameter("--adapt: a JSON object without `objective`")
    return cast(AdaptOptions, fields)


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print a result's fields, a line each, and with ``--json`` all of it as the last line."""
    for name, value in result.items():
        typer.echo(
            f"{name:>24}  {value:.4g}" if isinstance(value, float) else f"{name:>24}  {value}"
        )
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
