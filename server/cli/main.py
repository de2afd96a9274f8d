"""``refine-server``: the command line, assembled from its commands.

Commands import what they need when they run, so that ``--help`` is quick.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from refine_server.benchmarks.cli import app as bench
from refine_server.server.cli.commands.answer import adapt, answer
from refine_server.server.cli.commands.check import CHECK_CONTEXT, check
from refine_server.server.cli.commands.demo import demo
from refine_server.server.cli.commands.keys import app as keys
from refine_server.server.cli.commands.models import app as models
from refine_server.server.cli.commands.openapi import openapi
from refine_server.server.cli.commands.reference import app as reference
from refine_server.server.cli.commands.serve import SERVE_CONTEXT, serve
from refine_server.server.cli.commands.store import app as store
from refine_server.server.cli.commands.trace import app as trace
from refine_server.server.cli.exit import ExitOnError
from refine_server.server.cli.runtime import tune_runtime
from refine_server.ttt.training.cli import app as train

app = typer.Typer(
    cls=ExitOnError,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(add_help_option=False, context_settings=SERVE_CONTEXT)(serve)
app.command(context_settings=CHECK_CONTEXT)(check)
app.command()(answer)
app.command()(adapt)
app.command()(demo)
app.command()(openapi)
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(store, name="store")
app.add_typer(reference, name="reference")
app.add_typer(trace, name="trace")
app.add_typer(bench, name="bench")
app.add_typer(train, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refine-server {version('refine-server')}")
        raise typer.Exit


@app.callback()
def refine_server(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Answer questions about long documents with a model that adapts to each document."""


def main() -> None:
    """Run the command line."""
    tune_runtime()
    app(prog_name="refine-server")


if __name__ == "__main__":
    main()
