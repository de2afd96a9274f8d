"""``refine-server check``."""

import typer

from refine_server.server.cli.exit import InputError

CHECK_CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Every argument but ``--help`` goes to ``read_settings``, as those of ``serve``."""


def check(context: typer.Context) -> None:
    """Validate the options, files and variables that serve would use, and exit.

    Takes the options of serve. Reads the keys, writes to the store, tries the device and the
    address, and computes whether the model fits into memory; loads no weights. The exit status is
    0 if a server could start, and 2 if something has to be changed first, which is named.
    """
    from refine_server.server.cli.runtime import keep_log_clean
    from refine_server.server.settings import read_settings

    settings = read_settings(context.args)
    keep_log_clean()
    from refine_server.server import check as checks  # imports the whole server

    bad = []
    for finding in checks.check(settings):
        mark = "ok " if finding.is_good else "BAD"
        typer.echo(f"{mark}  {finding.part:<8} {finding.text}")
        if not finding.is_good:
            bad.append(finding.part)
    if bad:
        raise InputError(f"a server could not start: {', '.join(bad)}")
