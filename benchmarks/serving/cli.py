"""The commands that measure a server: load, overhead, beside and batch."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from refine_server.benchmarks.common.console import (
    LOCAL,
    Adapt,
    AnswerTokens,
    AsJson,
    DocumentLengths,
    ModelName,
    OutFolder,
    Repeats,
    Seed,
    Threads,
    TokenizerName,
    Url,
    adapt_of,
    names_of,
    print_result,
)
from refine_server.benchmarks.quality.replay.cli import tokenizer_of


def load(
    url: Url = LOCAL,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Open loop: request rates per second, one level of load each, separated by commas."
        ),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: numbers of clients, one level of load each, separated by commas."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests at each level.")] = 30,
    lengths: DocumentLengths = "512",
    repeats: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction of requests that reuse an earlier document."),
    ] = 0.0,
    adapt: Adapt = "{}",
    objective: Annotated[
        Literal["refine", "ntp", "none"],
        typer.Option(help="Training objective of the adaptations."),
    ] = "refine",
    max_tokens: AnswerTokens = 32,
    bound: Annotated[
        float,
        typer.Option(min=0, help="Seconds within which an answer counts as good (for goodput)."),
    ] = 30.0,
    dollars_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of the server per hour, to report costs.")
    ] = None,
    seed: Seed = 0,
    tokenizer: TokenizerName = None,
    out: OutFolder = Path("load-run"),
    as_json: AsJson = False,
) -> None:
    """Measure a server under load, and write a report.

    Requests arrive at random times (--rates, a Poisson process), or each client sends its next
    request when it has its answer (--clients).
    """
    from refine_server.benchmarks.common.failures import require_answers
    from refine_server.benchmarks.common.rows import write_rows
    from refine_server.benchmarks.report.manifest import Manifest, effective
    from refine_server.benchmarks.serving.drive import Driver
    from refine_server.benchmarks.serving.report import load_report, rows_of
    from refine_server.benchmarks.serving.workload import Mix

    arrivals, loads = _levels(rates, clients)
    mix = Mix.parse(lengths, repeats, seed)
    fields: Any = {**adapt_of(adapt), "objective": objective}
    driver = Driver(url, arrivals, fields, max_tokens, seed)
    settings = {"arrivals": arrivals, "lengths": lengths, "repeats": repeats}
    settings |= {"requests": requests, "max_tokens": max_tokens, "seed": seed}
    with tokenizer_of(url, tokenizer) as (client, tokens):
        settings["adapt"] = {**effective(fields, client), "objective": objective}
        manifest = Manifest.now("load", settings, client)
        asked = mix.requests(requests * len(loads), tokens)
    levels = [
        driver.run(load, asked[i * requests : (i + 1) * requests]) for i, load in enumerate(loads)
    ]
    report = load_report(manifest, levels, bound, dollars_per_hour)
    report.write(out)
    write_rows(out / "requests.jsonl", rows_of(levels))
    found = report.data["levels"]
    print_result({"levels": found, "report": str(out / "report.html")}, as_json)
    failed = [level for level in found if level["errors"]]
    require_answers(
        sum(sum(level["errors"].values()) for level in failed),
        requests * len(loads),
        failed[0]["first_error"] if failed else None,
    )


def overhead(
    clients: Annotated[
        int,
        typer.Option(min=1, help="Number of clients; each has at most one request in progress."),
    ] = 50,
    rate: Annotated[
        float, typer.Option(min=1, help="Requests per second of all clients together.")
    ] = 100.0,
    requests: Annotated[
        int, typer.Option(min=50, help="Requests to each of the two servers in a round.")
    ] = 500,
    repeats: Repeats = 3,
    as_json: AsJson = False,
) -> None:
    """Time what the server adds to a request, compared with a bare FastAPI echo of the same body.

    The server does everything but the model's work.
    """
    from refine_server.benchmarks.serving.overhead import run

    print_result(run(clients, rate, requests, repeats), as_json)


def batch(
    model: ModelName = "tiny",
    concurrency: Annotated[int, typer.Option(min=2, help="Number of concurrent requests.")] = 8,
    lengths: DocumentLengths = "512",
    adapt: Adapt = "{}",
    max_tokens: AnswerTokens = 64,
    repeats: Repeats = 2,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time concurrent adaptations and answers against the same ones in sequence, over HTTP."""
    from refine_server.benchmarks.serving.batch import BatchBench

    bench = BatchBench(model, concurrency, lengths, adapt_of(adapt), max_tokens, threads)
    print_result(bench.run(repeats), as_json)


def tracing(
    model: ModelName = "tiny",
    requests: Annotated[int, typer.Option(min=1, help="Requests in a row in each round.")] = 20,
    repeats: Repeats = 7,
    as_json: AsJson = False,
) -> None:
    """Measure the CPU time of requests without OpenTelemetry's SDK, with it but off, and traced.

    Each repeat lets the three servers take turns. The ratios are to the server without the SDK.
    """
    from refine_server.benchmarks.serving.tracing import compare

    print_result(compare(model, requests, repeats), as_json)


def beside(
    url: Url = LOCAL,
    lengths: DocumentLengths = "6000",
    chats: Annotated[
        int, typer.Option(min=2, help="Number of chats alone, and beside the documents.")
    ] = 20,
    adapt: Annotated[
        str | None,
        typer.Option(help="adapt object of the requests about documents."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Time short chats alone, and beside another client's answers about long documents.

    The first token of a chat waits for the other client's work, piece by piece.
    """
    from refine_server.benchmarks.serving.beside import run
    from refine_server.benchmarks.serving.workload import Mix

    fields: dict[str, Any] = {} if adapt is None else {"adapt": adapt_of(adapt)}
    with tokenizer_of(url, None) as (_, tokens):
        documents = Mix.parse(lengths, 0.0, seed).requests(4, tokens)
    print_result(run(url, documents, chats, fields), as_json)


def _levels(rates: str | None, clients: str | None) -> tuple[Any, list[float]]:
    if (rates is None) == (clients is None):
        raise typer.BadParameter("give either --rates or --clients")
    arrivals = "closed" if rates is None else "poisson"
    try:
        loads = [float(name) for name in names_of(rates or clients)]
    except ValueError:
        loads = []
    if not loads or min(loads) <= 0 or (arrivals == "closed" and any(x % 1 for x in loads)):
        raise typer.BadParameter("--rates must be positive numbers, --clients positive integers")
    return arrivals, loads
