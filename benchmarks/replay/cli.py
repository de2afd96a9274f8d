"""The commands that replay benchmarks: LongBench and RULER."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refine_server.benchmarks.console import (
    adapt_of,
    names_of,
    numbers_of,
    objectives_of,
    print_result,
    told_plainly,
)

if TYPE_CHECKING:
    from refine_server.benchmarks.tokens import Tokenizer
    from refine_server.clients import RefineClient

Url = Annotated[str, typer.Option(help="Address of the server.")]
Out = Annotated[Path, typer.Option(help="Folder for predictions and reports.")]
Objectives = Annotated[str, typer.Option(help="Some of none,ntp,refine, with commas.")]
Adapt = Annotated[str, typer.Option(help="Fields of `adapt` to change, as JSON.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
TokenizerName = Annotated[
    str | None,
    typer.Option("--tokenizer", help="tokenizer.json, its folder, a hub id; else the server's."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object.")]

ALL = "none,ntp,refine"
LOCAL = "http://127.0.0.1:8000"


def longbench(
    data: Annotated[Path, typer.Option(help="Folder with <task>.jsonl or .parquet.")],
    out: Out = Path("longbench-run"),
    url: Url = LOCAL,
    tasks: Annotated[str | None, typer.Option(help="With commas; by default all there.")] = None,
    objectives: Objectives = ALL,
    adapt: Adapt = "{}",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task.")] = None,
    max_length: Annotated[
        int, typer.Option(min=32, help="Tokens of a prompt; its middle is cut out beyond.")
    ] = 16_000,
    tokenizer: TokenizerName = None,
    concurrency: Concurrency = 1,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """LongBench over HTTP: official prompts, truncation and scores, with a report."""
    with told_plainly():
        from refine_server.benchmarks.longbench import data as rows
        from refine_server.benchmarks.longbench.replay import questions
        from refine_server.benchmarks.replay.bench import ReplayBench

        settings = {
            "tasks": names_of(tasks) or "all",
            "limit": limit,
            "max_length": max_length,
            "tokenizer": tokenizer or "server",
        }
        bench = ReplayBench(
            "longbench", url, out, objectives_of(objectives), adapt_of(adapt), settings,
            concurrency, resume,
        )  # fmt: skip
        found = rows.load(data, names_of(tasks), limit)
        with tokenizer_of(url, tokenizer) as (client, tokens):
            result = bench.run(client, questions(found, max_length, tokens))
        print_result(result, as_json)


def ruler_make(
    out: Annotated[Path, typer.Option(help="JSONL file to write.")] = Path("ruler.jsonl"),
    tasks: Annotated[
        str, typer.Option(help="With commas: niah_single_1, …, vt, cwe, fwe, qa_1, qa_2.")
    ] = "niah_single_1,niah_multikey_2,niah_multikey_3,vt,cwe,fwe",
    lengths: Annotated[str, typer.Option(help="Tokens of a sample, with commas.")] = "4096",
    samples: Annotated[int, typer.Option(min=1, help="Of each task and length.")] = 20,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    url: Url = LOCAL,
    tokenizer: TokenizerName = None,
    essay: Annotated[Path | None, typer.Option(help="Any long text, for some niah tasks.")] = None,
    squad: Annotated[Path | None, typer.Option(help="dev-v2.0.json, for qa_1.")] = None,
    hotpotqa: Annotated[
        Path | None, typer.Option(help="hotpot_dev_distractor_v1.json, for qa_2.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write RULER samples of any length for any tokenizer, the same for the same seed."""
    with told_plainly():
        from refine_server.benchmarks.rows import write_rows
        from refine_server.benchmarks.ruler.generate import Sources, generate

        sources = Sources(essay, squad, hotpotqa)
        with tokenizer_of(url, tokenizer) as (_, tokens):
            made = generate(
                names_of(tasks), numbers_of(lengths, "--lengths"), samples, tokens, sources, seed
            )
            count = write_rows(out, (sample.row() for sample in made))
        print_result({"samples": count, "file": str(out)}, as_json)


def ruler(
    data: Annotated[list[Path], typer.Option(help="JSONL of samples, as ruler-make writes it.")],
    out: Out = Path("ruler-run"),
    url: Url = LOCAL,
    objectives: Objectives = ALL,
    adapt: Adapt = "{}",
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each file.")] = None,
    concurrency: Concurrency = 1,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """RULER over HTTP: official prompts and scores, with a report."""
    with told_plainly():
        from refine_server.benchmarks.replay.bench import ReplayBench
        from refine_server.benchmarks.rows import read_rows
        from refine_server.benchmarks.ruler.replay import questions
        from refine_server.benchmarks.ruler.samples import Sample
        from refine_server.clients import RefineClient

        settings = {"data": [path.name for path in data], "limit": limit}
        bench = ReplayBench(
            "ruler", url, out, objectives_of(objectives), adapt_of(adapt), settings,
            concurrency, resume,
        )  # fmt: skip
        samples = [s for path in data for s in list(read_rows(path, Sample.parse))[:limit]]
        with RefineClient(url) as client:
            print_result(bench.run(client, questions(samples)), as_json)


def longbench_score(
    file: Annotated[Path, typer.Argument(help="Rows {dataset, prediction, answers, all_classes}.")],
    as_json: AsJson = False,
) -> None:
    """Official LongBench scores of a file of predictions, 0 to 100."""
    with told_plainly():
        from refine_server.benchmarks.longbench.score import score_file

        result = score_file(file)
        print_result(result, as_json)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a longbench or ruler run.")],
    as_json: AsJson = False,
) -> None:
    """Write a run's report anew, also of one that was cut short."""
    with told_plainly():
        from refine_server.benchmarks.replay.bench import write_report
        from refine_server.benchmarks.replay.folder import RunFolder

        print_result(write_report(RunFolder.open(run)), as_json)


@contextmanager
def tokenizer_of(url: str, name: str | None) -> Iterator[tuple["RefineClient", "Tokenizer"]]:
    """A client of a server, and the tokenizer that a command counts with."""
    from refine_server.benchmarks.tokens import FileTokenizer, ServerTokenizer
    from refine_server.clients import RefineClient

    with RefineClient(url) as client:
        yield client, ServerTokenizer(client) if name is None else FileTokenizer(name)
