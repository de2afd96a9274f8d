"""``refine-server openapi``."""

import json

import typer


def openapi() -> None:
    """Print the HTTP API as an OpenAPI document in JSON, for client generators."""
    from refine_server.server.app import create_app
    from refine_server.server.settings import read_settings

    typer.echo(json.dumps(create_app(read_settings()).openapi(), indent=1))
