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


ModelName = Annotated[str, typer.Option(help="smollm2, tiny, a directory or a hub id.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object.")]

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
    model: Annotated[
        str, typer.Option(help="smollm2, tiny, lact (a small random one), a directory or a hub id.")
    ] = "tiny",
    document_tokens: Annotated[int, typer.Option(min=64, help="T, the document's length.")] = 2048,
    positions: Annotated[int, typer.Option(min=1, help="c, rollout positions.")] = 8,
    rollouts: Annotated[int, typer.Option(min=1, help="n, rollouts a position.")] = 4,
    rollout_tokens: Annotated[int, typer.Option(min=1, help="k, tokens a rollout.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 5,
    naive_repeats: Annotated[
        int | None, typer.Option(min=0, help="Of these, with the naive loop; by default all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """One REFINE step against the naive loop that re-reads prefixes, and against an NTP step."""
    from refine_server.benchmarks.refine_step import StepBench

    bench = StepBench(model, document_tokens, positions, rollouts, rollout_tokens, threads)
    print_result(bench.run(repeats, naive_repeats), as_json)


@app.command()
def batch(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a directory or a hub id.")] = "tiny",
    concurrency: Annotated[int, typer.Option(min=2, help="Requests at once.")] = 8,
    lengths: Annotated[str, typer.Option(help="Documents: TOKENS:WEIGHT, with commas.")] = "512",
    adapt: Annotated[str, typer.Option(help="Fields of `adapt`, as JSON.")] = "{}",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the medians are reported.")] = 2,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Adaptations and answers at once against the same ones one after the other, over HTTP."""
    from refine_server.benchmarks.batch import BatchBench
    from refine_server.benchmarks.console import adapt_of, told_plainly

    with told_plainly():
        bench = BatchBench(model, concurrency, lengths, adapt_of(adapt), max_tokens, threads)
        print_result(bench.run(repeats), as_json)


@app.command()
def ask(
    model: ModelName = "tiny",
    shortest: Annotated[int, typer.Option(min=64, help="Tokens of the short document.")] = 1024,
    longest: Annotated[int, typer.Option(min=64, help="Tokens of the long one.")] = 16384,
    document_tokens: Annotated[int, typer.Option(min=64, help="Of the one asked often.")] = 512,
    queries: Annotated[int, typer.Option(min=1, help="Questions about it.")] = 10,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that a query decodes.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 9,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """A query on a long and a short adapted document; many queries against adapting for each."""
    from refine_server.benchmarks.ask import AskBench

    bench = AskBench(model, tokens, threads)
    print_result(bench.run(shortest, longest, document_tokens, queries, repeats), as_json)


@app.command()
def decode(
    model: ModelName = "tiny",
    directory: Annotated[Path, typer.Option(help="Example files.")] = Path("examples"),
    questions: Annotated[int, typer.Option(min=1, help="About each document.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 3,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Greedy answers against transformers' generate; for tiny on a random Llama of its shape."""
    from refine_server.benchmarks.console import told_plainly
    from refine_server.benchmarks.decode import DecodeBench

    with told_plainly():
        bench = DecodeBench(model, directory, questions, tokens, threads)
        print_result(bench.run(repeats), as_json)


@app.command()
def prefill(
    model: ModelName = "tiny",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    delta_tokens: Annotated[int, typer.Option(min=64, help="T of the delta rule.")] = 8192,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 5,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Reading a prompt against transformers' forward, and the delta rule against plainer forms."""
    from refine_server.benchmarks.generate import PrefillBench, delta_rule_prefill

    result = PrefillBench(model, threads).run(tokens, repeats)
    print_result(result | delta_rule_prefill(delta_tokens // 64 * 64, repeats), as_json)


@app.command()
def memory(
    model: ModelName = "tiny",
    shortest: Annotated[int, typer.Option(min=64, help="Tokens of the short document.")] = 4096,
    longest: Annotated[int, typer.Option(min=64, help="Tokens of the long one.")] = 16384,
    budget_mib: Annotated[
        int, typer.Option(min=0, help="Of activations before segments are recomputed; 0: no limit.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Peak memory of one adaptation step on two lengths of document."""
    from refine_server.benchmarks.memory import run

    print_result(run(model, shortest, longest, budget_mib * 2**20 or None), as_json)


@app.command()
def costs(
    model: ModelName = "tiny",
    lengths: Annotated[str, typer.Option(help="T, with commas.")] = "512,1024,2048,4096,8192",
    rollouts: Annotated[str, typer.Option(help="n, with commas; c is 8.")] = "1,2,4,8,16,32",
    rollouts_tokens: Annotated[int, typer.Option(min=64, help="T where c n grows.")] = 2048,
    batches: Annotated[str, typer.Option(help="Requests at once, with commas.")] = "1,2,4,8",
    batch_tokens: Annotated[int, typer.Option(min=64, help="T of each of them.")] = 384,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are reported.")] = 3,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("costs.png"),
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """A step by T and by rollouts, a batch by its size, a token by T: seconds, and a picture."""
    from refine_server.benchmarks.console import numbers_of, told_plainly

    with told_plainly():
        from refine_server.benchmarks.costs import CostBench, draw

        sizes = numbers_of(lengths, "--lengths"), numbers_of(rollouts, "--rollouts")
        at_once = numbers_of(batches, "--batches")
        panels = CostBench(model, repeats, threads).run(
            *sizes, rollouts_tokens, at_once, batch_tokens
        )
        draw(panels, out)
        print_result({"model": model, **panels, "picture": str(out)}, as_json)


@app.command()
def examples(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a directory or a hub id.")] = "smollm2",
    directory: Annotated[Path, typer.Option(help="Example files.")] = Path("examples"),
    adapt: Annotated[str, typer.Option(help="Fields of `adapt` to change, as JSON.")] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Right answers about the example documents: unadapted, next-token and REFINE adaptation."""
    from refine_server.benchmarks.console import told_plainly
    from refine_server.benchmarks.examples import ExamplesBench

    with told_plainly():
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
