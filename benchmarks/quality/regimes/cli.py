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
    adapt_config_of,
    names_of,
    numbers_of,
    print_result,
)

if TYPE_CHECKING:
    from refine_server.benchmarks.quality.regimes.bench import AdaptationBench
    from refine_server.benchmarks.quality.regimes.items import Item

QUICK_LENGTHS, QUICK_DOCUMENTS = "512,1024", 4


def regimes(
    model: ModelName = "tiny",
    lengths: Annotated[
        str, typer.Option(help="Approximate document lengths in tokens, separated by commas.")
    ] = "512,1024,2048",
    documents: Annotated[
        int, typer.Option(min=1, help="Number of documents for each task and length.")
    ] = 20,
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
    out: OutFolder = Path("adaptation"),
    resume: Resume = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"Use {QUICK_DOCUMENTS} documents of {QUICK_LENGTHS} tokens only."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score answers without adaptation, with next-token adaptation and with REFINE.

    Every objective is scored in every regime of --regimes.
    """
    import torch

    from refine_server.benchmarks.quality.regimes.bench import AdaptationBench
    from refine_server.benchmarks.quality.regimes.contexts import regimes_of
    from refine_server.benchmarks.quality.regimes.report import Summary
    from refine_server.ttt.models import load

    if threads is not None:
        torch.set_num_threads(threads)
    config = adapt_config_of(adapt)
    chosen = regimes_of(names_of(regimes))
    loaded = load(model, window=window if sliding else None)
    bench = AdaptationBench(loaded, config, chosen, window)
    if quick:
        lengths, documents = QUICK_LENGTHS, QUICK_DOCUMENTS
    items = _items(bench, data, numbers_of(lengths, "--lengths"), documents, seed, part)
    results = []
    for result in bench.run(items, out / "results.jsonl", resume=resume):
        results.append(result)
        typer.echo(f"{len(results)}/{3 * len(items)} {result.key} {result.scores}", err=True)
    summary = Summary(results, chosen)
    title = f"{model}, {part}, {'window' if sliding else 'full'} attention"
    command = shlex.join(["refine-server", *sys.argv[1:]])
    about = f"Seed {seed}, {len(items)} documents, settings `{config.model_dump_json()}`."
    (out / "report.md").write_text(summary.markdown(title, command, about))
    summary.draw(out / "scores.png", title)
    print_result({"model": model, "part": part, "seed": seed, **summary.figures()}, as_json)


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
