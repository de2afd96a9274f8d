"""``refine-server bench reliability``."""

import json
import logging
from typing import Annotated

import typer

from refine_server.benchmarks.common.console import AsJson, ModelName, Seed

MUST_BE_ZERO = (
    *("wrong", "lost", "leaked", "errors_5xx", "store_corruptions", "stuck", "exit_status"),
    "failed_faults",
)


def reliability(
    model: ModelName = "tiny",
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Duration of the soak test in minutes.")
    ] = 30.0,
    kills: Annotated[
        int, typer.Option(min=0, help="Number of times that the server is killed with SIGKILL.")
    ] = 20,
    clients: Annotated[int, typer.Option(min=1, help="Number of concurrent clients.")] = 6,
    documents: Annotated[
        int, typer.Option(min=1, help="Number of different documents in the traffic.")
    ] = 8,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Test a server under load and faults; the exit status is 1 if a check fails.

    A soak test with mixed traffic, then kills, a full disk, a lost store and clock jumps. Counts
    wrong answers, lost or stuck requests, leaks and 5xx responses, and measures memory growth.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from refine_server.benchmarks.common.failures import require_zero
    from refine_server.benchmarks.robustness.reliability.bench import ReliabilityBench, bench_folder
    from refine_server.benchmarks.robustness.reliability.faults import Faults

    with bench_folder() as folder:
        bench = ReliabilityBench(model, documents, clients, seed, folder)
        result = bench.run(minutes, kills)
        result["faults"] = Faults(bench).run()
    for name, value in result.items():
        typer.echo(f"{name:>24}  {value}")
    if as_json:
        typer.echo(json.dumps(result))
    failed = [f"{n}: {f}" for n, f in result["faults"].items() if f.startswith("failed")]
    first = next(iter([*result["notes"], *failed]), None)
    require_zero({**result, "failed_faults": len(failed)}, MUST_BE_ZERO, first)
