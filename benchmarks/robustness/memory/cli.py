"""``refine-server bench soak``."""

from typing import Annotated

import typer

from refine_server.benchmarks.common.console import AsJson, ModelName, Seed, print_result


def soak(
    model: ModelName = "smollm2",
    requests: Annotated[int, typer.Option(min=20, help="Number of requests.")] = 60,
    memory_bytes: Annotated[
        int | None, typer.Option(min=1, help="--memory-bytes of the server. Default: its default.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the resident size of a server under requests of mixed lengths and kinds.

    Answers are compared with those of the same requests sent alone. The exit status is 1 if one
    differs.
    """
    from refine_server.benchmarks.robustness.memory.soak import run

    options: dict[str, object] = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    result = run(model, requests, seed, options)
    print_result(result, as_json)
    if result["wrong"]:
        raise typer.Exit(1)
