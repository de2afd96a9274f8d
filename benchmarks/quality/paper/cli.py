"""``refine-server bench paper``."""

from pathlib import Path
from typing import Annotated, cast

import typer

from refine_server.benchmarks.common.console import (
    Adapt,
    AsJson,
    ModelName,
    OutFolder,
    Threads,
    Traces,
    adapt_config_of,
    objectives_of,
    print_result,
)


def paper(
    data: Annotated[
        list[Path],
        typer.Option(
            help="File of rows as the paper's authors publish them (.parquet). Can be given "
            "several times."
        ),
    ],
    model: ModelName = "tiny",
    objectives: Annotated[
        str, typer.Option(help="Objectives, separated by commas: none, ntp, refine.")
    ] = "none,ntp,refine",
    carry_over: Annotated[
        bool,
        typer.Option(
            "--carry-over",
            help="Adapt one copy of the weights to all rows in turn, as the published code does. "
            "Default: a fresh copy for each row.",
        ),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(
            min=1, help="With --carry-over: rows that are adapted on before they are answered."
        ),
    ] = 8,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Number of rows of each file. Default: all.")
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=128, help="Maximum length of prompt and answer in tokens.")
    ] = 16384,
    adapt: Adapt = '{"preset": "paper"}',
    device: Annotated[
        str, typer.Option(help="Device that the model runs on, as PyTorch names it.")
    ] = "cpu",
    activation_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="MiB of activations that a step may keep; a prompt that needs more is recomputed "
            "in segments. Default: no limit.",
        ),
    ] = None,
    threads: Threads = None,
    traces: Traces = False,
    out: OutFolder = Path("paper"),
    as_json: AsJson = False,
) -> None:
    """Score test-time training as the paper does, on its own rows and with its own settings."""
    from itertools import islice

    import torch

    from refine_server.benchmarks.common.rows import read_rows
    from refine_server.benchmarks.quality.paper.bench import PaperBench, figures
    from refine_server.benchmarks.quality.paper.rows import PublishedRow
    from refine_server.ttt.interface.config import Objective
    from refine_server.ttt.models import load

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = cast(list[Objective], objectives_of(objectives))
    config = adapt_config_of(adapt).updated(trace=traces)
    found = [row for path in data for row in islice(read_rows(path, PublishedRow.parse), rows)]
    loaded = load(model, device=device)
    loaded.activation_budget = activation_mib and activation_mib * 2**20
    bench, results = PaperBench(loaded, config, max_length, batch if carry_over else None), []
    for result in bench.run(found, chosen, out / "results.jsonl"):
        results.append(result)
        done = f"{len(results)}/{len(chosen) * len(found)}"
        typer.echo(f"{done} {result.objective} {result.task} {result.score:.0f}", err=True)
    print_result({"model": model, "carry_over": carry_over, **figures(results)}, as_json)
