"""``refine-server bench dashboard``."""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from refine_server.benchmarks.common.console import ModelName

RULES = Path("deploy/prometheus/recording_rules.yml"), Path("deploy/prometheus/alerts.yml")


def dashboard(
    model: ModelName = "tiny",
    seconds: Annotated[
        float, typer.Option(min=1, help="Duration of the load in seconds, beside the start.")
    ] = 90.0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="File for the dashboard in Grafana's JSON; nothing is run."),
    ] = None,
    picture: Annotated[
        Path, typer.Option(help="File for the picture of the panels under load.")
    ] = Path("dashboard.png"),
) -> None:
    """Write the Grafana dashboard, or draw its panels of a server under load.

    The panels are drawn from what their queries return of a real Prometheus, which scrapes the
    server. Run it at the root of the repository, which has the rules; it needs the program
    prometheus. The exit status is 1 if a query returns nothing.
    """
    from refine_server.benchmarks.common.failures import RunFailedError
    from refine_server.benchmarks.dashboard import grafana
    from refine_server.benchmarks.dashboard.picture import draw
    from refine_server.benchmarks.dashboard.prometheus import scraping
    from refine_server.benchmarks.dashboard.results import results
    from refine_server.benchmarks.dashboard.traffic import Traffic, write_keys
    from refine_server.benchmarks.robustness.reliability.process import ServerProcess

    if json_file is not None:
        json_file.write_text(grafana.dashboard_json(), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key, limited_key = write_keys(folder / "keys.toml")
        options: dict[str, object] = {"model": model, "api_keys_file": folder / "keys.toml"}
        options |= {"store": (folder / "store").as_uri(), "max_active": 2}
        server = ServerProcess(options, {}, folder / "log")
        server.start()
        try:
            target = server.url.removeprefix("http://")
            with scraping(target, key, RULES, folder) as prometheus:
                traffic = Traffic(server.url, key, limited_key)
                began = time.time()
                while time.time() - began < seconds:
                    traffic.send_round()
                found = list(results(prometheus, began, time.time()))
        finally:
            server.stop()
    if empty := [result for result in found if not result.series]:
        names = ", ".join(f"{result.panel.title} ({result.query.legend})" for result in empty)
        raise RunFailedError(f"queries that return nothing: {names}")
    draw(found).savefig(picture, dpi=80)
    typer.echo(f"{len(found)} queries, none of them empty: {picture}")
