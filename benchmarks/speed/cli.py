"""The commands that measure the model's own work: steps, answers, memory and kernels."""

import json
from pathlib import Path
from typing import Annotated

import typer

from refine_server.benchmarks.common.console import (
    AnswerTokens,
    AsJson,
    Examples,
    ModelName,
    Repeats,
    Threads,
    Url,
    numbers_of,
    print_result,
)


def step(
    model: Annotated[
        str,
        typer.Option(
            help="Model: smollm2, tiny, tiny-nested, lact (small, random weights), a directory or "
            "a hub id (owner/name)."
        ),
    ] = "tiny",
    document_tokens: Annotated[
        int, typer.Option(min=64, help="T: length of the document in tokens.")
    ] = 2048,
    positions: Annotated[int, typer.Option(min=1, help="c: number of rollout positions.")] = 8,
    rollouts: Annotated[int, typer.Option(min=1, help="n: rollouts for each position.")] = 4,
    rollout_tokens: Annotated[int, typer.Option(min=1, help="k: tokens in each rollout.")] = 5,
    repeats: Repeats = 5,
    naive_repeats: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of these rounds that also run the naive loop. Default: all of them."
        ),
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time a REFINE step against the naive loop, which re-reads prefixes, and an NTP step."""
    from refine_server.benchmarks.speed.refine_step import StepBench

    bench = StepBench(model, document_tokens, positions, rollouts, rollout_tokens, threads)
    print_result(bench.run(repeats, naive_repeats), as_json)


def evidence_step(
    model: ModelName = "tiny",
    lengths: Annotated[
        str, typer.Option(help="T: document lengths in tokens, ascending, separated by commas.")
    ] = "1024,4096,16384",
    spans: Annotated[int, typer.Option(min=1, help="Number of spans of evidence.")] = 4,
    span_tokens: Annotated[int, typer.Option(min=10, help="Length of a span in tokens.")] = 128,
    repeats: Repeats = 5,
    document_repeats: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of rounds with a step on the whole document. Default: all of them."
        ),
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure a step on evidence over a frozen document against one on the whole document.

    Reports seconds, CPU seconds and peak memory of a step at each document length. `speedup` is
    that of a step on evidence, in CPU seconds. Linux only.
    """
    from refine_server.benchmarks.speed.evidence_step import EvidenceStepBench

    numbers = numbers_of(lengths, "--lengths")
    if min(numbers) < spans * (span_tokens + 2):
        raise typer.BadParameter("--lengths must have room for all spans, and two tokens for each")
    bench = EvidenceStepBench(model, spans, span_tokens, threads)
    print_result(bench.run(numbers, repeats, document_repeats), as_json)


def ask(
    model: ModelName = "tiny",
    shortest: Annotated[
        int, typer.Option(min=64, help="Length of the short document in tokens.")
    ] = 1024,
    longest: Annotated[
        int, typer.Option(min=64, help="Length of the long document in tokens.")
    ] = 16384,
    document_tokens: Annotated[
        int, typer.Option(min=64, help="Length in tokens of the document for many queries.")
    ] = 512,
    queries: Annotated[
        int, typer.Option(min=1, help="Number of queries about that document.")
    ] = 10,
    tokens: Annotated[
        int, typer.Option(min=1, help="Number of tokens decoded for each query.")
    ] = 16,
    repeats: Repeats = 9,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time a query on a long and on a short adapted document.

    Also times many queries on one adapted document against adapting again for each query.
    """
    from refine_server.benchmarks.speed.ask import AskBench

    bench = AskBench(model, tokens, threads)
    print_result(bench.run(shortest, longest, document_tokens, queries, repeats), as_json)


def decode(
    model: ModelName = "tiny",
    directory: Examples = Path("examples"),
    questions: Annotated[
        int, typer.Option(min=1, help="Number of questions about each document.")
    ] = 5,
    tokens: AnswerTokens = 64,
    repeats: Repeats = 3,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time greedy answers against `generate` of transformers.

    For tiny, which transformers does not have, both sides run a random Llama of the same size.
    """
    from refine_server.benchmarks.speed.decode import DecodeBench

    bench = DecodeBench(model, directory, questions, tokens, threads)
    print_result(bench.run(repeats), as_json)


def prefill(
    model: ModelName = "tiny",
    tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt in tokens.")] = 512,
    delta_tokens: Annotated[
        int,
        typer.Option(min=64, help="Sequence length for the delta rule, rounded down to 64 tokens."),
    ] = 8192,
    repeats: Repeats = 5,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time the prefill of a prompt against transformers, and the delta rule against two references.

    The delta rule runs in chunks. Its references are the recurrence, token by token, and chunks
    whose triangular systems are solved row by row.
    """
    from refine_server.benchmarks.speed.prefill import PrefillBench, delta_rule_prefill

    result = PrefillBench(model, threads).run(tokens, repeats)
    print_result(result | delta_rule_prefill(delta_tokens // 64 * 64, repeats), as_json)


def memory(
    model: ModelName = "tiny",
    shortest: Annotated[
        int, typer.Option(min=64, help="Length of the short document in tokens.")
    ] = 4096,
    longest: Annotated[
        int, typer.Option(min=64, help="Length of the long document in tokens.")
    ] = 16384,
    budget_mib: Annotated[
        int,
        typer.Option(
            min=0,
            help="MiB of activations that a step may keep; a document that needs more is "
            "recomputed in segments. 0: no limit.",
        ),
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure the peak memory of one adaptation step on a short and on a long document."""
    from refine_server.benchmarks.speed.memory import run

    print_result(run(model, shortest, longest, budget_mib * 2**20 or None), as_json)


def peaks(
    model: ModelName = "tiny",
    lengths: Annotated[
        str, typer.Option(help="Document lengths in tokens, separated by commas.")
    ] = "512,1024,2048",
    as_json: AsJson = False,
) -> None:
    """Compare the peaks of memory that models inspect predicts with those of adaptations."""
    from refine_server.benchmarks.speed.peaks import run

    print_result(run(model, numbers_of(lengths, "--lengths")), as_json)


def costs(
    model: ModelName = "tiny",
    lengths: Annotated[
        str, typer.Option(help="T: document lengths in tokens, separated by commas.")
    ] = "512,1024,2048,4096,8192",
    rollouts: Annotated[
        str,
        typer.Option(help="n: rollouts for each of c = 8 positions, separated by commas."),
    ] = "1,2,4,8,16,32",
    rollouts_tokens: Annotated[
        int, typer.Option(min=64, help="T when the number of rollouts varies.")
    ] = 2048,
    batches: Annotated[
        str, typer.Option(help="Batch sizes in requests, separated by commas.")
    ] = "1,2,4,8",
    batch_tokens: Annotated[
        int, typer.Option(min=64, help="T of each request when the batch size varies.")
    ] = 384,
    repeats: Repeats = 3,
    out: Annotated[Path, typer.Option(help="PNG file to write the plot to.")] = Path("costs.png"),
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how the cost of a step, a batch and a decoded token grows, in seconds; draw a plot.

    Times a step for several document lengths and numbers of rollouts, a batch for several sizes,
    and a decoded token for several document lengths.
    """
    from refine_server.benchmarks.speed.costs import CostBench, draw

    sizes = numbers_of(lengths, "--lengths"), numbers_of(rollouts, "--rollouts")
    batch_sizes = numbers_of(batches, "--batches")
    bench = CostBench(model, repeats, threads)
    panels = bench.run(*sizes, rollouts_tokens, batch_sizes, batch_tokens)
    draw(panels, out, f"{model}: medians over n = {repeats} rounds of each point")
    print_result({"model": model, **panels, "picture": str(out)}, as_json)


def kernels(threads: Threads = None, as_json: AsJson = False) -> None:
    """Check and time the Triton kernels (needs Triton, but no GPU).

    Reports errors against the definitions, registers and shared memory for sm_90, and CPU times of
    the torch forms against the definitions.
    """
    from importlib.util import find_spec

    if find_spec("triton") is None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")
    import torch

    from refine_server.benchmarks.speed.kernels import bench

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


def page(
    url: Url = "http://127.0.0.1:8000",
    document_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the document in tokens.")
    ] = 16384,
    chromium: Annotated[str, typer.Option(help="Executable of Chromium.")] = "/usr/bin/chromium",
    repeats: Repeats = 3,
    as_json: AsJson = False,
) -> None:
    """Measure a running server's page in Chromium: its first paint, and frames while scrolling.

    The run that it shows is made up: the document is random words, whose trace has 4,096 bins.
    """
    from refine_server.benchmarks.speed.page import PageBench

    print_result(PageBench(url, chromium, document_tokens).run(repeats), as_json)
