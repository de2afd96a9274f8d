"""``refine-server bench``: one command for each benchmark."""

import json
from pathlib import Path
from typing import Annotated

import typer

from refine_server.benchmarks.adaptation.cli import adaptation
from refine_server.benchmarks.console import print_result
from refine_server.benchmarks.reliability.cli import reliability
from refine_server.benchmarks.replay import cli as replay
from refine_server.benchmarks.serving.cli import load

app = typer.Typer(
    no_args_is_help=True, help="Measure speed and quality: compare sides of one run only."
)


@app.callback()
def _bench() -> None:
    """Measure speed and quality: compare sides of one run only."""


app.command("longbench")(replay.longbench)
app.command("longbench-score")(replay.longbench_score)
app.command("ruler-make")(replay.ruler_make)
app.command("ruler")(replay.ruler)
app.command("report")(replay.report)
app.command("load")(load)


app.command("reliability")(reliability)
app.command("adaptation")(adaptation)


@app.command()
def step(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a directory or a hub id.")] = "tiny",
    document_tokens: Annotated[int, typer.Option(min=64, help="T, the document's length.")] = 2048,
    chunks: Annotated[int, typer.Option(min=1, help="c, rollout positions.")] = 8,
    rollouts: Annotated[int, typer.Option(min=1, help="n, rollouts a position.")] = 4,
    rollout_tokens: Annotated[int, typer.Option(min=1, help="k, tokens a rollout.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """One REFINE step against the naive loop that re-reads prefixes, and against an NTP step."""
    from refine_server.benchmarks.refine_step import StepBench

    bench = StepBench(model, document_tokens, chunks, rollouts, rollout_tokens, threads)
    print_result(bench.run(repeats), as_json)


@app.command()
def examples(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a directory or a hub id.")] = "smollm2",
    directory: Annotated[Path, typer.Option(help="Example files.")] = Path("examples"),
    adapt: Annotated[str, typer.Option(help="Fields of `adapt` to change, as JSON.")] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Right answers about the example documents: unadapted, next-token and REFINE adaptation."""
    from refine_server.benchmarks.examples import ExamplesBench

    print_result(ExamplesBench(model, directory, json.loads(adapt)).run(), as_json)


@app.command()
def kernels(
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """The kernels: errors, registers and shared memory on sm_90, times against definitions."""
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        typer.echo("refine-server: bench kernels needs Triton: pip install triton", err=True)
        raise typer.Exit(1)
    import torch

    from refine_server.benchmarks import kernels as bench

    if threads is not None:
        torch.set_num_threads(threads)
    result = bench.run()
    for kernel in result["kernels"]:
        ratio = kernel["cpu_ratio_to_naive"]
        typer.echo(
            f"{kernel['name']:>18}  error {kernel['max_error']:.1e}  "
            f"sm_90 {kernel['sm90']['registers']} registers, {kernel['sm90']['spills']} spilled, "
            f"{kernel['sm90']['shared_bytes']} B shared  "
            + ("" if ratio is None else f"CPU {ratio:.2f} of naive")
        )
    if as_json:
        typer.echo(json.dumps(result))
