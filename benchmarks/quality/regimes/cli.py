"""``refine-server bench regimes``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refine_server.benchmarks.common.console import (
    Adapt,
    AsJson,
    ModelName,
    OutFolder,
    Part,
    PartOfDocuments,
    Resume,
    Seed,
    Threads,
    Traces,
    adapt_config_of,
    names_of,
    numbers_of,
    print_result,
)

if TYPE_CHECKING:
    from refine_server.benchmarks.quality.regimes.bench import AdaptationBench
    from refine_server.benchmarks.quality.regimes.items import Item

DEFAULT_LENGTHS, DEFAULT_DOCUMENTS = "512,1024,2048", 20
QUICK_LENGTHS, QUICK_DOCUMENTS = "512,1024", 4


def regimes(
    model: ModelName = "tiny",
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Approximate document lengths in tokens, separated by commas. Default: "
            f"{DEFAULT_LENGTHS}."
        ),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Number of documents for each task and length. Default: {DEFAULT_DOCUMENTS}.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="RULER or LongBench rows (.jsonl or .parquet) to use instead of generated needles."
        ),
    ] = None,
    part: PartOfDocuments = "heldout",
    seed: Seed = 0,
    regimes: Annotated[
        str,
        typer.Option(
            help="What the prompt contains when a question is asked, separated by commas: context "
            "(the whole document), memory (nothing), truncated (the document without its middle), "
            "passages (its best BM25 passages)."
        ),
    ] = "context,memory,truncated,passages",
    window: Annotated[
        int, typer.Option(min=64, help="Size in tokens of what truncated and passages keep.")
    ] = 512,
    sliding: Annotated[
        bool,
        typer.Option(help="Limit attention to a window of --window tokens (overlay family only)."),
    ] = False,
    adapt: Adapt = "{}",
    threads: Threads = None,
    out: OutFolder = Path("regimes"),
    traces: Traces = False,
    resume: Resume = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Change the defaults of --lengths to {QUICK_LENGTHS} and of --documents to "
            f"{QUICK_DOCUMENTS}.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score answers without adaptation, with next-token adaptation and with REFINE.

    Every objective is scored in every regime of --regimes.
    """
    import torch

    from refine_server.benchmarks.common.failures import require_answers
    from refine_server.benchmarks.common.files import write_text
    from refine_server.benchmarks.common.run_settings import begin_run
    from refine_server.benchmarks.quality.regimes.bench import AdaptationBench
    from refine_server.benchmarks.quality.regimes.contexts import regimes_of
    from refine_server.benchmarks.quality.regimes.report import Summary
    from refine_server.ttt.models import load

    if threads is not None:
        torch.set_num_threads(threads)
    config = adapt_config_of(adapt).updated(trace=traces)
    chosen = regimes_of(names_of(regimes))
    loaded = load(model, window=window if sliding else None)
    bench = AdaptationBench(loaded, config, chosen, window)
    if lengths is None:
        lengths = QUICK_LENGTHS if quick else DEFAULT_LENGTHS
    if documents is None:
        documents = QUICK_DOCUMENTS if quick else DEFAULT_DOCUMENTS
    items = _items(bench, data, numbers_of(lengths, "--lengths"), documents, seed, part)
    settings = {"model": model, "part": part, "seed": seed, "window": window, "sliding": sliding}
    settings |= {"regimes": chosen, "adapt": config.model_dump(mode="json")}
    path, results = begin_run(out, settings, resume), []
    for result in bench.run(items, path, resume=resume):
        results.append(result)
        typer.echo(f"{len(results)}/{3 * len(items)} {result.key} {result.scores}", err=True)
    first = next(iter(bench.failures), None)
    summary = Summary(results, chosen)
    if not summary.cells:
        require_answers(len(bench.failures), len(bench.failures), first)
    title = f"{model}, {part}, {'window' if sliding else 'full'} attention"
    command = shlex.join(["refine-server", *sys.argv[1:]])
    about = f"Seed {seed}, {len(items)} documents, settings `{config.model_dump_json()}`."
    write_text(out / "report.md", summary.markdown(title, command, about))
    summary.draw(out / "scores.png", title)
    print_result({"model": model, "part": part, "seed": seed, **summary.figures()}, as_json)
    require_answers(len(bench.failures), len(results) + len(bench.failures), first)


def _items(
    bench: "AdaptationBench",
    data: Path | None,
    lengths: list[int],
    count: int,
    seed: int,
    part: Part,
) -> "list[Item]":
    from refine_server.benchmarks.quality.regimes import items

    if data is not None:
        return items.in_turns(items.file_items(data, count, part))
    if bench.model.name in ("tiny", "tiny-nested"):
        return items.in_turns(items.tiny_items(lengths, count, seed, part))
    return items.in_turns(items.prose_items(lengths, count, bench.tokenizer, seed, part))
