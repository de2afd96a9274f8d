"""``refine-server serve``."""

import logging
import os

import typer

SERVE_CONTEXT = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}
"""Every argument, ``--help`` too, goes to ``read_settings``, where the options are declared."""


def serve(context: typer.Context) -> None:
    """Serve a model over HTTP. For the options and their environment variables: serve --help."""
    from refine_server.server.cli.runtime import keep_log_clean
    from refine_server.server.settings import read_settings

    settings = read_settings(context.args)
    keep_log_clean()
    # What follows imports the whole server, which --help must not.
    if settings.replicas > 1 or settings.devices:
        from refine_server.server.replicas import local

        local.serve(settings)
    else:
        from refine_server.server import process

        process.serve(settings)
    logging.shutdown()
    # Everything is closed and stored. Python's own end adds nothing but notices of libraries on
    # objects that they leak.
    os._exit(0)
