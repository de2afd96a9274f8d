"""``refine-server bench adaptation``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refine_server.benchmarks.common.console import (
    AsJson,
    ModelName,
    OutFolder,
    Part,
    PartOfDocuments,
    Resume,
    Seed,
    Threads,
    Traces,
    names_of,
    numbers_of,
    print_result,
)

if TYPE_CHECKING:
    from refine_server.benchmarks.quality.regimes.items import Item
    from refine_server.ttt.models import CausalLM

DEFAULT_LENGTHS, DEFAULT_DOCUMENTS = "1024,2048", 20
QUICK_LENGTHS, QUICK_DOCUMENTS = "512,1024", 2


def adaptation(
    model: ModelName = "smollm2",
    arms: Annotated[
        str,
        typer.Option(
            help="Ways to answer, separated by commas: none (the whole document), passages, "
            "document+passages, attention, ntp, refine, passages+attention, passages+refine, "
            "default (what /v1/answers does), and others that benchmarks/README.md explains."
        ),
    ] = "none,passages,default",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="RULER or LongBench rows (.jsonl or .parquet), instead of generated needles "
            "unless --lengths is given too. Can be given several times."
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths of generated documents in tokens, separated by commas. Default: "
            f"{DEFAULT_LENGTHS}, or no such documents where --data is given."
        ),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of documents of each task and length, or file. Default: "
            f"{DEFAULT_DOCUMENTS}.",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=64, help="Leave out documents with more tokens than this.")
    ] = 4096,
    part: PartOfDocuments = "heldout",
    seed: Seed = 0,
    threads: Threads = None,
    out: OutFolder = Path("adaptation"),
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
    """Score answers of the unadapted model, behind passages, and as /v1/answers gives them.

    All arms answer the same questions; differences are paired by document.
    """
    import torch

    from refine_server.benchmarks.common.failures import require_answers
    from refine_server.benchmarks.common.files import write_text
    from refine_server.benchmarks.common.run_settings import begin_run
    from refine_server.benchmarks.quality.answers.arms import arms_of
    from refine_server.benchmarks.quality.answers.bench import AnswerBench
    from refine_server.benchmarks.quality.answers.report import Summary
    from refine_server.ttt.models import load

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = arms_of(names_of(arms))
    if documents is None:
        documents = QUICK_DOCUMENTS if quick else DEFAULT_DOCUMENTS
    if lengths is None and not data:
        lengths = QUICK_LENGTHS if quick else DEFAULT_LENGTHS
    loaded = load(model)
    sizes = numbers_of(lengths, "--lengths") if lengths else []
    items = _items(loaded, data or [], sizes, documents, max_tokens, seed, part)
    settings = {"model": model, "part": part, "seed": seed, "traces": traces}
    path = begin_run(out, settings, resume)
    bench, results = AnswerBench(loaded, chosen, traces), []
    for result in bench.run(items, path, resume=resume):
        results.append(result)
        typer.echo(f"{len(results)} {result.key} {result.score:.1f}", err=True)
    summary = Summary(results, [arm.name for arm in chosen])
    asked, first = len(results) + len(bench.failures), next(iter(bench.failures), None)
    if not summary.n:
        require_answers(len(bench.failures), asked, first)
    title = f"{model}, {part}"
    about = f"Seed {seed}, {summary.n} documents of at most {max_tokens} tokens."
    command = shlex.join(["refine-server", *sys.argv[1:]])
    write_text(out / "report.md", summary.markdown(title, command, about))
    summary.draw(out / "scores.png", title)
    print_result({"model": model, "part": part, "seed": seed, **summary.figures()}, as_json)
    require_answers(len(bench.failures), asked, first)


def _items(
    model: "CausalLM",
    data: list[Path],
    lengths: list[int],
    count: int,
    max_tokens: int,
    seed: int,
    part: Part,
) -> "list[Item]":
    """Return the documents, of every file, task and length in turn."""
    from refine_server.benchmarks.quality.regimes import items
    from refine_server.benchmarks.quality.regimes.bench import ModelTokenizer

    tokenizer = ModelTokenizer(model.tokenizer)
    found = (item for path in data for item in items.file_items(path, sys.maxsize, part))
    short = [item for item in found if len(tokenizer.encode(item.context)) <= max_tokens]
    if model.name in ("tiny", "tiny-nested"):
        generated = items.tiny_items(lengths, count, seed, part)
    else:
        generated = items.prose_items(lengths, count, tokenizer, seed, part)
    return items.in_turns([*_first(short, count), *generated])


def _first(found: "list[Item]", count: int) -> "list[Item]":
    """Keep the first ``count`` documents of each task."""
    kept: list[Item] = []
    for item in found:
        if sum(other.task == item.task for other in kept) < count:
            kept.append(item)
    return kept
