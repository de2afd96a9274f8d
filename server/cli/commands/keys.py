"""``refine-server keys``: API keys of a server."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Create API keys for a server.")


@app.callback()
def _keys() -> None:
    """Create API keys for a server."""  # without a callback, a single command replaces its group


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="Name of the key's holder: letters, digits, '.', '_' and '-'.")
    ],
) -> None:
    """Create an API key.

    The key goes to stderr and is stored nowhere. Its entry for --api-keys-file, which holds only
    a hash of the key, goes to stdout.
    """
    from refine_server.server.access.keys import new_key

    key, entry = new_key(name)
    typer.echo(f"API key of {name} (it is not stored; save it now): {key}", err=True)
    typer.echo(entry.toml())
