"""``refine-server store``: look at the adaptations that servers keep."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from refine_server.server.cli.exit import FAILED

app = typer.Typer(no_args_is_help=True, help="Look at the store of adaptations.")

StoreUrl = Annotated[
    str,
    typer.Option(
        envvar="REFINE_STORE",
        help="Store, as --store of serve: an fsspec URL. Empty: the one in the cache directory.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON array instead of text.")]
COLUMNS = ("id", "state", "bytes", "owner", "expires")


@app.command(name="list")
def list_entries(store: StoreUrl = "", as_json: AsJson = False) -> None:
    """List all entries, whatever model they belong to, and which of them cannot be used."""
    from refine_server.server.adaptations.store.inventory import entries

    _print(list(entries(_url(store))), as_json)


@app.command()
def verify(store: StoreUrl = "", as_json: AsJson = False) -> None:
    """Read all entries and compare them with their checksums; change nothing.

    The exit status is 1 if an entry is damaged.
    """
    from refine_server.server.adaptations.store.inventory import entries

    found = list(entries(_url(store), reads_data=True))
    _print(found, as_json)
    if any(entry.state == "damaged" for entry in found):
        raise typer.Exit(FAILED)


@app.command()
def quarantine(
    store: StoreUrl = "",
    as_json: AsJson = False,
    empty: Annotated[bool, typer.Option("--empty", help="Delete them all.")] = False,
) -> None:
    """List the damaged entries that servers put aside, and why."""
    from refine_server.server.adaptations.store import inventory

    url = _url(store)
    found = list(inventory.quarantined(url))
    if as_json:
        typer.echo(json.dumps([{"model": m, **asdict(e), "reason": r} for m, e, r in found]))
    else:
        rows = [[e.id, str(e.nbytes), _time(e.at), reason or "-"] for _, e, reason in found]
        _print_table(("id", "bytes", "since", "reason"), rows)
    if empty:
        inventory.empty_quarantine(url)


def _url(store: str) -> str:
    from refine_server.server.adaptations.connection import default_url

    return store or default_url()


def _print(entries: Sequence[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries]))
        return
    rows = [[e.id, e.state, str(e.nbytes), e.owner or "-", _time(e.expires_at)] for e in entries]
    _print_table(COLUMNS, rows)
    for entry in entries:
        if entry.problem:
            typer.echo(f"{entry.id}: {entry.problem}")
    typer.echo(f"{len(entries)} entries, {sum(entry.nbytes for entry in entries)} bytes")


def _print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _time(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
