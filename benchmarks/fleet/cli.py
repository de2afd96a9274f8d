"""The commands that measure and simulate a fleet: fleet-replay and fleet."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from refine_server.benchmarks.common.console import LOCAL, AsJson, Seed, Url, print_result

Documents = Annotated[int, typer.Option(min=1, help="Number of different documents.")]
Exponent = Annotated[
    float, typer.Option(min=0, help="Exponent of Zipf's law; 0: all documents alike.")
]


def fleet_replay(
    url: Url = LOCAL,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 5.0,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests.")] = 300,
    documents: Documents = 60,
    exponent: Exponent = 1.0,
    words: Annotated[int, typer.Option(min=1, help="Length of a document in words.")] = 800,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer in tokens.")] = 16,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="File to write the run to.")] = Path("replay.json"),
) -> None:
    """Send questions about popular and rare documents to replicas, and record what they take."""
    from refine_server.benchmarks.fleet.replay import replay
    from refine_server.benchmarks.fleet.simulate import percentile
    from refine_server.benchmarks.fleet.trace import zipf_trace

    trace = zipf_trace(
        rate=rate, requests=requests, documents=documents, exponent=exponent, seed=seed
    )
    run = asyncio.run(replay(url, trace, rate=rate, words=words, max_tokens=max_tokens))
    out.write_text(run.model_dump_json())
    latencies = [sample.latency for sample in run.samples]
    hits = sum(sample.is_hit for sample in run.samples)
    seen = len(run.samples) - len(set(run.documents))
    result = {
        "requests": len(run.samples),
        "replicas": run.replicas,
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "hit_ratio": hits / len(run.samples),
        "affinity": hits / max(seen, 1),
    }
    print_result(result, as_json=False)


def fleet(
    replay: Annotated[
        Path, typer.Option(help="Run of fleet-replay whose service times are taken.")
    ],
    rates: Annotated[
        str, typer.Option(help="Requests per second, separated by commas.")
    ] = "10,100,1000,10000",
    documents: Documents = 100_000,
    exponent: Exponent = 1.0,
    cached_documents: Annotated[
        int, typer.Option(min=1, help="Number of documents that a replica keeps.")
    ] = 1000,
    document_bytes: Annotated[
        int, typer.Option(min=1, help="Memory in bytes of a document that is kept.")
    ] = 2**20,
    bound: Annotated[
        float, typer.Option(min=0, help="Seconds within which 99 of 100 answers have to come.")
    ] = 2.0,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests at each rate.")] = 20_000,
    fallbacks: Annotated[
        int, typer.Option(min=0, help="Replicas that are tried after one that is full.")
    ] = 127,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that wait at a replica before it counts as full.")
    ] = 8,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG file for a plot.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate fleets: the replicas that each rate needs, with requests sent to the replica that
    keeps their document, and with requests sent to any."""
    from refine_server.benchmarks.fleet.replay import Replay
    from refine_server.benchmarks.fleet.simulate import Service
    from refine_server.benchmarks.fleet.study import Question, study, validate

    run = Replay.model_validate_json(replay.read_text())
    validation = {
        name: validate(run, cached_documents, own=own)
        for name, own in (("own times", True), ("drawn times", False))
    }
    for times, figures in validation.items():
        for name, values in figures.items():
            typer.echo(
                f"{times}, {name}: measured {values['measured']:.4g}, simulated "
                f"{values['simulated']:.4g} ({values['difference']:+.1%})"
            )
    question = Question(
        rates=[float(rate) for rate in rates.split(",")],
        documents=documents,
        exponent=exponent,
        cached_documents=cached_documents,
        document_bytes=document_bytes,
        bound=bound,
        requests=requests,
        fallbacks=fallbacks,
        max_queue=max_queue,
        seed=seed,
    )
    rows = []
    for row in study(question, Service.of(run)):
        rows.append(row)
        typer.echo("  ".join(f"{name} {_text(value)}" for name, value in row.items()))
    if plot is not None:
        from refine_server.benchmarks.fleet.plot import draw

        draw(rows, plot)
    if as_json:
        typer.echo(json.dumps({"validation": validation, "rows": rows}))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
