"""``refine-server bench overhead``: what the server adds to a request, without the model's work.

The server without its model's work and a bare FastAPI echo get the same load in turn; the
difference between their times is the overhead.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy

from refine_server.benchmarks.serving.idle_servers import running_servers
from refine_server.benchmarks.serving.paced import request_times

DOCUMENT = "The harbour master reads the weather in the morning before the first boat leaves. " * 12
"""About 1000 characters, because parsing and tokenising long documents is not measured here."""

BODY = {
    "document": DOCUMENT,
    "query": "Who reads the weather?",
    "context": "document",
    "adapt": {"objective": "none"},
}

PERCENTILES = (50, 99)


def run(clients: int, rate: float, requests: int, repeats: int) -> dict[str, Any]:
    """Start both servers and compare them; the arguments are those of ``compare``."""
    with running_servers() as urls:
        return compare(urls, clients=clients, rate=rate, requests=requests, repeats=repeats)


def compare(
    urls: Mapping[str, str], *, clients: int, rate: float, requests: int, repeats: int
) -> dict[str, Any]:
    """Milliseconds from sending a request to having its answer, and by how much they differ.

    Arrivals are evenly spaced and the rate is below what either server can take, so that the times
    are those of requests and not of queues. All figures are medians over rounds.

    Args:
        urls: where to post to, of ``ours`` and of ``echo``.
        clients: number of connections, each with at most one request in progress.
        rate: requests per second of all clients together.
        requests: number of requests to each server in a round.
        repeats: number of rounds, after one to warm up.

    Raises:
        RunFailedError: a request failed.
    """
    percentiles: dict[str, list[Any]] = {name: [] for name in urls}
    one_client: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(repeats + 1):
        for name, url in urls.items():
            many = request_times(url, BODY, clients=clients, rate=rate, count=requests)
            few = request_times(url, BODY, clients=1, rate=rate, count=max(50, requests // 10))
            if number > 0:
                percentiles[name].append(numpy.percentile(many, PERCENTILES))
                one_client[name].append(statistics.median(few))
    result: dict[str, Any] = {"clients": clients, "rate": rate, "requests": requests}
    for column, percentile in enumerate(PERCENTILES):
        at = {name: [float(row[column]) for row in rows] for name, rows in percentiles.items()}
        for name in urls:
            result[f"{name}_p{percentile}_ms"] = statistics.median(at[name])
        differences = [ours - echo for ours, echo in zip(at["ours"], at["echo"], strict=True)]
        result[f"more_p{percentile}_ms"] = statistics.median(differences)
    for name in urls:
        result[f"{name}_one_client_p50_ms"] = statistics.median(one_client[name])
    return result
