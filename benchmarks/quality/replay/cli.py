"""The commands that run data sets against a server: LongBench and RULER."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refine_server.benchmarks.common.console import (
    LOCAL,
    Adapt,
    AsJson,
    OutFolder,
    Resume,
    Seed,
    TokenizerName,
    Traces,
    Url,
    adapt_of,
    names_of,
    numbers_of,
    objectives_of,
    print_result,
    traced,
)

if TYPE_CHECKING:
    from refine_server.benchmarks.common.tokens import Tokenizer
    from refine_server.clients import RefineClient

Objectives = Annotated[
    str, typer.Option(help="Objectives to compare (none, ntp, refine), separated by commas.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Number of concurrent requests.")]

ALL = "none,ntp,refine"


def longbench(
    data: Annotated[
        Path, typer.Option(help="Folder with one file for each task: TASK.jsonl or TASK.parquet.")
    ],
    out: OutFolder = Path("longbench-run"),
    url: Url = LOCAL,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, separated by commas. Default: all tasks that --data has."),
    ] = None,
    objectives: Objectives = ALL,
    adapt: Adapt = "{}",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first rows of each task.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Maximum prompt length in tokens; the middle of a longer one is cut out. Default: "
            "the server cuts the middle out of a document that is longer than it reads.",
        ),
    ] = None,
    tokenizer: TokenizerName = None,
    traces: Traces = False,
    concurrency: Concurrency = 1,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run LongBench over HTTP with its official prompts, truncation and scores; write a report."""
    from refine_server.benchmarks.quality.longbench import data as rows
    from refine_server.benchmarks.quality.longbench.replay import questions
    from refine_server.benchmarks.quality.replay.bench import ReplayBench

    settings = {
        "tasks": names_of(tasks) or "all",
        "limit": limit,
        "max_length": max_length,
        "tokenizer": tokenizer or "server",
    }
    bench = ReplayBench(
        "longbench", url, out, objectives_of(objectives), traced(adapt_of(adapt), traces), settings,
        concurrency, resume,
    )  # fmt: skip
    found = rows.load(data, names_of(tasks), limit)
    with tokenizer_of(url, tokenizer) as (client, tokens):
        result = bench.run(client, questions(found, max_length, tokens))
    _finish(result, as_json)


def ruler_make(
    out: Annotated[Path, typer.Option(help="File to write the samples to (JSON lines).")] = Path(
        "ruler.jsonl"
    ),
    tasks: Annotated[
        str,
        typer.Option(
            help="RULER tasks, separated by commas: niah_single_1, …, vt, cwe, fwe, qa_1, qa_2."
        ),
    ] = "niah_single_1,niah_multikey_2,niah_multikey_3,vt,cwe,fwe",
    lengths: Annotated[
        str, typer.Option(help="Sample lengths in tokens, separated by commas.")
    ] = "4096",
    samples: Annotated[
        int, typer.Option(min=1, help="Number of samples for each task and length.")
    ] = 20,
    seed: Seed = 0,
    url: Url = LOCAL,
    tokenizer: TokenizerName = None,
    essay: Annotated[
        Path | None, typer.Option(help="A long text file, which the niah tasks with an essay need.")
    ] = None,
    squad: Annotated[
        Path | None, typer.Option(help="SQuAD's dev-v2.0.json, which qa_1 needs.")
    ] = None,
    hotpotqa: Annotated[
        Path | None,
        typer.Option(help="HotpotQA's hotpot_dev_distractor_v1.json, which qa_2 needs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate RULER samples of chosen lengths; the same seed gives the same samples."""
    from refine_server.benchmarks.common.rows import write_rows
    from refine_server.benchmarks.quality.ruler.generate import Sources, generate

    sources = Sources(essay, squad, hotpotqa)
    with tokenizer_of(url, tokenizer) as (_, tokens):
        made = generate(
            names_of(tasks), numbers_of(lengths, "--lengths"), samples, tokens, sources, seed
        )
        count = write_rows(out, (sample.row() for sample in made))
    print_result({"samples": count, "file": str(out)}, as_json)


def ruler(
    data: Annotated[
        list[Path], typer.Option(help="File of samples, as written by ruler-make; repeatable.")
    ],
    out: OutFolder = Path("ruler-run"),
    url: Url = LOCAL,
    objectives: Objectives = ALL,
    adapt: Adapt = "{}",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first samples of each file.")
    ] = None,
    traces: Traces = False,
    concurrency: Concurrency = 1,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run RULER over HTTP with its official prompts and scores; write a report."""
    from refine_server.benchmarks.common.rows import read_rows
    from refine_server.benchmarks.quality.replay.bench import ReplayBench
    from refine_server.benchmarks.quality.ruler.replay import questions
    from refine_server.benchmarks.quality.ruler.samples import Sample
    from refine_server.clients import RefineClient

    settings = {"data": [path.name for path in data], "limit": limit}
    bench = ReplayBench(
        "ruler", url, out, objectives_of(objectives), traced(adapt_of(adapt), traces), settings,
        concurrency, resume,
    )  # fmt: skip
    samples = [s for path in data for s in list(read_rows(path, Sample.parse))[:limit]]
    with RefineClient(url) as client:
        result = bench.run(client, questions(samples))
    _finish(result, as_json)


def longbench_score(
    file: Annotated[
        Path,
        typer.Argument(
            help="File (.jsonl or .parquet) with dataset, prediction, answers and all_classes."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Compute the official LongBench scores (0 to 100) of a file of predictions."""
    from refine_server.benchmarks.quality.longbench.score import score_file

    result = score_file(file)
    print_result(result, as_json)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a longbench or ruler run (its --out).")],
    as_json: AsJson = False,
) -> None:
    """Write the report of a run again, even if the run was interrupted; the exit status is 1 if
    requests of it failed."""
    from refine_server.benchmarks.quality.replay.bench import write_report
    from refine_server.benchmarks.quality.replay.folder import RunFolder

    _finish(write_report(RunFolder.open(run)), as_json)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    """Print the figures of a run; end with status 1 if requests of it failed."""
    from refine_server.benchmarks.common.failures import require_answers

    print_result(result, as_json)
    require_answers(result["errors"], result["requests"], result["first_error"])


@contextmanager
def tokenizer_of(url: str, name: str | None) -> Iterator[tuple["RefineClient", "Tokenizer"]]:
    """Open a client of the server and a tokenizer to count lengths with."""
    from refine_server.benchmarks.common.tokens import FileTokenizer, ServerTokenizer
    from refine_server.clients import RefineClient

    with RefineClient(url) as client:
        yield client, ServerTokenizer(client) if name is None else FileTokenizer(name)
