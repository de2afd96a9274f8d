"""Times of a server and of one that only echoes, under the same clients."""

import asyncio
import gc
import statistics
import time
from collections.abc import Mapping
from typing import Any

import httpx
import numpy

DOCUMENT = "The harbour master reads the weather in the morning before the first boat leaves. " * 12
"""About a thousand characters: what is measured is the way, not the reading."""

BODY = {"document": DOCUMENT, "query": "Who reads the weather?", "adapt": {"objective": "none"}}


def measure(
    sides: Mapping[str, str], clients: int, rate: float, requests: int, repeats: int
) -> dict[str, Any]:
    """Milliseconds from sending a request to having its answer, at p50 and p99, and differences.

    In every round both sides get the same load in turn; medians over rounds. Arrivals are evenly
    spaced and below what either side can take, so times are those of requests and not of queues;
    a client whose answer is late sends its next request late.

    Args:
        sides: URLs to post to, of ``ours`` and of ``echo``.
        clients: connections; each has one request under way at most.
        rate: requests a second of all clients together.
        requests: to each side in each round.
        repeats: rounds, after one that does not count.

    Raises:
        httpx.HTTPStatusError: a side answered with an error.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    alone: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, url in sides.items():
            together = asyncio.run(_load(url, clients, rate, requests))
            single = asyncio.run(_load(url, 1, rate, max(50, requests // 10)))
            if turn:
                found[name].append(tuple(numpy.percentile(together, (50, 99))))
                alone[name].append(statistics.median(single))
    result: dict[str, Any] = {"clients": clients, "rate": rate, "requests": requests}
    for at, percentile in enumerate(("p50", "p99")):
        for name in sides:
            result[f"{name}_{percentile}_ms"] = statistics.median(t[at] for t in found[name])
        rounds = zip(found["ours"], found["echo"], strict=True)
        result[f"more_{percentile}_ms"] = statistics.median(o[at] - e[at] for o, e in rounds)
    for name in sides:
        result[f"{name}_one_client_p50_ms"] = statistics.median(alone[name])
    return result


async def _load(url: str, clients: int, rate: float, requests: int) -> list[float]:
    """Milliseconds of every request."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=60.0) as client:
        await asyncio.gather(*(client.post(url, json=BODY) for _ in range(clients)))  # connects
        gc.collect()
        gc.disable()
        began = time.perf_counter()
        try:
            parts = await asyncio.gather(
                *(
                    _send(client, url, began, range(i, requests, clients), rate)
                    for i in range(clients)
                )
            )
        finally:
            gc.enable()
    return [milliseconds for part in parts for milliseconds in part]


async def _send(
    client: httpx.AsyncClient, url: str, began: float, numbers: range, rate: float
) -> list[float]:
    """Send the requests of these numbers, each when it is due."""
    took = []
    for number in numbers:
        await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0.0))
        sent = time.perf_counter()
        (await client.post(url, json=BODY)).raise_for_status()
        took.append(1000 * (time.perf_counter() - sent))
    return took
