"""``refine-server bench adaptation``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from refine_server.benchmarks.console import (
    adapt_of,
    names_of,
    numbers_of,
    print_result,
    told_plainly,
)

if TYPE_CHECKING:
    from refine_server.benchmarks.adaptation.bench import AdaptationBench
    from refine_server.benchmarks.adaptation.items import Item, Part

QUICK_LENGTHS, QUICK_DOCUMENTS = "512,1024", 4


def adaptation(
    model: Annotated[str, typer.Option(help="tiny, smollm2, a directory or a hub id.")] = "tiny",
    lengths: Annotated[str, typer.Option(help="Tokens of a document, about.")] = "512,1024,2048",
    documents: Annotated[int, typer.Option(min=1, help="Of each task and length.")] = 20,
    data: Annotated[
        Path | None, typer.Option(help="Rows of RULER or LongBench, instead of needles.")
    ] = None,
    part: Annotated[str, typer.Option(help="dev (to choose settings) or heldout.")] = "heldout",
    seed: Annotated[int, typer.Option(help="Of the documents and questions.")] = 0,
    regimes: Annotated[
        str, typer.Option(help="What stands in the prompt when it is asked; the first one leads.")
    ] = "context,memory,truncated,passages",
    window: Annotated[
        int, typer.Option(min=64, help="Tokens that truncated and passages may fill.")
    ] = 512,
    sliding: Annotated[
        bool, typer.Option(help="Attention sees --window tokens only (overlay family).")
    ] = False,
    adapt: Annotated[str, typer.Option(help="Fields of `adapt` to change, as JSON.")] = "{}",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results.jsonl, report.md and scores.png.")
    ] = Path("adaptation"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out ends.")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help=f"{QUICK_DOCUMENTS} documents of {QUICK_LENGTHS} tokens."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Score unadapted, next-token and REFINE adaptation, beside truncation and BM25 passages."""
    with told_plainly():
        import torch

        from refine_server.benchmarks.adaptation.bench import AdaptationBench
        from refine_server.benchmarks.adaptation.contexts import regimes_of
        from refine_server.benchmarks.adaptation.report import Summary
        from refine_server.ttt.interface.config import AdaptConfig
        from refine_server.ttt.models import load

        if part not in ("dev", "heldout"):
            raise typer.BadParameter("--part: dev or heldout")
        if threads is not None:
            torch.set_num_threads(threads)
        config = AdaptConfig.model_validate(adapt_of(adapt))
        chosen = regimes_of(names_of(regimes))
        bench = AdaptationBench(
            load(model, window=window if sliding else None), config, chosen, window
        )
        if quick:
            lengths, documents = QUICK_LENGTHS, QUICK_DOCUMENTS
        items = _items(bench, data, numbers_of(lengths, "--lengths"), documents, seed, part)
        results = []
        for result in bench.run(items, out / "results.jsonl", resume=resume):
            results.append(result)
            _tell(f"{len(results)}/{3 * len(items)} {result.key} {result.scores}")
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
    part: str,
) -> "list[Item]":
    from refine_server.benchmarks.adaptation import items

    of = cast("Part", part)
    if data is not None:
        return items.in_turns(items.file_items(data, count, of))
    if bench.model.name in ("tiny", "tiny-nested"):
        return items.in_turns(items.tiny_items(lengths, count, seed, of))
    return items.in_turns(items.prose_items(lengths, count, bench.tokenizer, seed, of))


def _tell(line: str) -> None:
    typer.echo(line, err=True)
