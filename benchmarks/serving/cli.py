"""``bench load``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from refine_server.benchmarks.console import adapt_of, names_of, print_result, told_plainly
from refine_server.benchmarks.replay.cli import LOCAL, AsJson, TokenizerName, Url, tokenizer_of


def load(
    url: Url = LOCAL,
    rates: Annotated[
        str | None, typer.Option(help="Open loop: requests a second, one level each, with commas.")
    ] = None,
    clients: Annotated[
        str | None, typer.Option(help="Closed loop: clients, one level each, with commas.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each level.")] = 30,
    lengths: Annotated[str, typer.Option(help="Documents: TOKENS:WEIGHT, with commas.")] = "512",
    repeats: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests about an earlier document.")
    ] = 0.0,
    adapt: Annotated[str, typer.Option(help="Fields of `adapt`, as JSON.")] = "{}",
    objective: Annotated[str, typer.Option(help="refine, ntp or none.")] = "refine",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    bound: Annotated[float, typer.Option(min=0, help="Seconds of a good answer.")] = 30.0,
    dollars_per_hour: Annotated[float | None, typer.Option(min=0, help="Of the server.")] = None,
    seed: Annotated[int, typer.Option(help="Of documents and arrivals.")] = 0,
    tokenizer: TokenizerName = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("load-run"),
    as_json: AsJson = False,
) -> None:
    """The server under load: Poisson arrivals (--rates), or clients that wait (--clients)."""
    with told_plainly():
        from refine_server.benchmarks.replay.folder import Manifest, effective
        from refine_server.benchmarks.report.loaded import load_report
        from refine_server.benchmarks.serving.drive import Driver
        from refine_server.benchmarks.serving.workload import Mix

        arrivals, loads = _levels(rates, clients)
        mix = Mix.parse(lengths, repeats, seed)
        fields: Any = {**adapt_of(adapt), "objective": objective}
        driver = Driver(url, arrivals, fields, max_tokens, seed)
        settings = {"arrivals": arrivals, "lengths": lengths, "repeats": repeats}
        settings |= {"requests": requests, "max_tokens": max_tokens, "seed": seed}
        with tokenizer_of(url, tokenizer) as (client, tokens):
            settings["adapt"] = {**effective(fields, client), "objective": objective}
            manifest = Manifest.now("load", settings, client)
            asked = mix.requests(requests * len(loads), tokens)
        levels = [
            driver.run(load, asked[i * requests : (i + 1) * requests])
            for i, load in enumerate(loads)
        ]
        report = load_report(manifest, levels, bound, dollars_per_hour)
        report.write(out)
        print_result({"levels": report.data["levels"], "report": str(out / "report.html")}, as_json)


def _levels(rates: str | None, clients: str | None) -> tuple[Any, list[float]]:
    if (rates is None) == (clients is None):
        raise typer.BadParameter("one of --rates and --clients is needed")
    arrivals = "closed" if rates is None else "poisson"
    try:
        loads = [float(name) for name in names_of(rates or clients)]
    except ValueError:
        loads = []
    if not loads or min(loads) <= 0 or (arrivals == "closed" and any(x % 1 for x in loads)):
        raise typer.BadParameter("--rates takes positive numbers, --clients whole ones")
    return arrivals, loads
