"""``refine-server bench users``."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from refine_server.benchmarks.common.console import AsJson, ModelName, names_of

PARTS = ("application", "operations", "research")


def users(
    model: ModelName = "tiny",
    parts: Annotated[
        str, typer.Option(help="Kinds of users, separated by commas: application, operations, …")
    ] = ",".join(PARTS),
    as_json: AsJson = False,
) -> None:
    """Do what users do and check what they see; the exit status is 1 if a check fails.

    An application asks about a lease, a manual and a report, keeps an adaptation and streams; an
    operator scrapes metrics, reads the log and stops the server; a researcher runs a benchmark.
    """
    from refine_server.benchmarks.robustness.reliability.process import ServerProcess
    from refine_server.benchmarks.robustness.users import application, operations, research
    from refine_server.benchmarks.robustness.users.checks import Checks
    from refine_server.clients import RefineClient

    chosen = names_of(parts)
    if not chosen or not set(chosen) <= set(PARTS):
        raise typer.BadParameter(f"--parts must be some of {', '.join(PARTS)}")
    checks = Checks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: dict[str, object] = {"model": model, "store": "none", "log_format": "json"}
        keys = {"REFINE_API_KEYS": f"{operations.NAME}:{operations.KEY}"}
        server = ServerProcess(options, keys, folder / "server.log")
        if {"application", "operations"} & set(chosen):
            server.start()
        try:
            if "application" in chosen:
                with RefineClient(server.url, api_key=operations.KEY) as client:
                    for text in application.TEXTS:
                        application.use(client, text, checks)
            if "operations" in chosen:
                operations.operate(server, folder / "server.log", checks)
        finally:
            server.stop()
        if "research" in chosen:
            research.study(model, folder, checks)
    for what in checks.failed:
        typer.echo(f"failed  {what}")
    typer.echo(f"{len(checks.passed)} checks passed, {len(checks.failed)} failed")
    if as_json:
        typer.echo(json.dumps({"passed": len(checks.passed), "failed": checks.failed}))
    if checks.failed:
        raise typer.Exit(1)
