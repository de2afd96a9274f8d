"""Post the same body at a steady rate, and time every request."""

import asyncio
import gc
import time
from typing import Any

import httpx

from refine_server.benchmarks.common.failures import RunFailedError


def request_times(
    url: str, body: dict[str, Any], *, clients: int, rate: float, count: int
) -> list[float]:
    """Send ``count`` requests, ``rate`` per second, over ``clients`` connections.

    A client whose answer is late sends its next request late.

    Returns:
        Milliseconds from sending each request to having its answer.

    Raises:
        RunFailedError: a request failed.
    """
    return asyncio.run(_send_all(url, body, clients, rate, count))


async def _send_all(
    url: str, body: dict[str, Any], clients: int, rate: float, count: int
) -> list[float]:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=60.0) as client:
        await asyncio.gather(*(_post(client, url, body) for _ in range(clients)))  # connects
        gc.collect()
        gc.disable()
        try:
            start = time.perf_counter()
            due = [
                [start + i / rate for i in range(first, count, clients)] for first in range(clients)
            ]
            times = await asyncio.gather(*(_send(client, url, body, own) for own in due))
        finally:
            gc.enable()
    return [milliseconds for own in times for milliseconds in own]


async def _send(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], due: list[float]
) -> list[float]:
    """Send one client's requests, each when it is due or as soon as the one before is answered."""
    times = []
    for at in due:
        await asyncio.sleep(max(at - time.perf_counter(), 0.0))
        sent = time.perf_counter()
        await _post(client, url, body)
        times.append(1000 * (time.perf_counter() - sent))
    return times


async def _post(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    try:
        response = await client.post(url, json=body)
    except httpx.HTTPError as error:
        raise RunFailedError(f"a request to {url} failed: {error!r}") from None
    if response.is_error:
        raise RunFailedError(f"{url} answered with {response.status_code}: {response.text}")
