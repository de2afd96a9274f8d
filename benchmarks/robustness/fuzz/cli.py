"""``refine-server bench fuzz``."""

import logging
from typing import Annotated

import typer

from refine_server.benchmarks.common.console import AsJson, ModelName, print_result


def fuzz(
    model: ModelName = "tiny",
    seconds: Annotated[float, typer.Option(min=1, help="Duration in seconds.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Random seed of the first inputs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Send inputs that nobody should send; the exit status is 1 if one causes a server error.

    Bodies of the contract with invalid Unicode, extreme numbers, unknown tokens, huge texts and
    nulls in any place, bodies that are no JSON or were damaged, any heads of requests, uploads,
    and batches of such requests. Errors within streams and within a batch's outputs count, too.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    from refine_server.benchmarks.common.failures import require_zero
    from refine_server.benchmarks.robustness.fuzz.bench import fuzz as run

    result = run(model, seconds, seed)
    print_result(result, as_json)
    require_zero(result, ("errors_5xx", "exit_status"), result["first_error"])
