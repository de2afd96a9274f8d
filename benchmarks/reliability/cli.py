"""``refine-server bench reliability``."""

import json
import logging
from typing import Annotated

import typer


def reliability(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a directory or a hub id.")] = "tiny",
    minutes: Annotated[float, typer.Option(min=0.1, help="Length of the soak.")] = 30.0,
    kills: Annotated[int, typer.Option(min=0, help="How often the server is killed.")] = 20,
    clients: Annotated[int, typer.Option(min=1, help="Clients at the same time.")] = 6,
    documents: Annotated[int, typer.Option(min=1, help="Different documents.")] = 8,
    seed: Annotated[int, typer.Option(help="Of all that is random in the traffic.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Soak, kill -9, full disk, lost store, clock jumps: wrong answers, losses, leaks, growth."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from refine_server.benchmarks.reliability.bench import ReliabilityBench, bench_folder
    from refine_server.benchmarks.reliability.faults import Faults

    with bench_folder() as folder:
        bench = ReliabilityBench(model, documents, clients, seed, folder)
        result = bench.run(minutes, kills)
        result["faults"] = Faults(bench).run()
    for name, value in result.items():
        typer.echo(f"{name:>24}  {value}")
    if as_json:
        typer.echo(json.dumps(result))
    faults = [told for told in result["faults"].values() if told.startswith("failed")]
    bad = ("wrong", "lost", "leaked", "errors_5xx", "store_corruptions", "stuck", "exit_status")
    if faults or any(result[name] for name in bad):
        raise typer.Exit(1)
