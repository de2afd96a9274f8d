"""``refine-server reference``: pages of the documentation that are made from the code."""

import typer

app = typer.Typer(
    no_args_is_help=True, help="Print the pages of all settings and all metrics, in Markdown."
)


@app.command()
def settings() -> None:
    """Print docs/settings.md."""
    from refine_server.server.reference.settings_page import settings_page

    typer.echo(settings_page(), nl=False)


@app.command()
def metrics() -> None:
    """Print docs/metrics.md."""
    from refine_server.server.reference.metrics_page import metrics_page

    typer.echo(metrics_page(), nl=False)
