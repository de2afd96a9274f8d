"""Send a trace to real replicas, and record where each request went and what it took."""

import asyncio
import time
from collections.abc import Sequence
from functools import cached_property

import httpx
from pydantic import BaseModel

from refine_server.benchmarks.common.failures import RunFailedError
from refine_server.benchmarks.fleet.trace import Trace, text_of

QUERY = "What is the number of the harbour of the falcon?"
TIMEOUT_SECONDS = 600.0
WORK = ("prefill_seconds", "adapt_seconds", "judge_seconds", "decode_seconds")


class Sample(BaseModel):
    """One request of a measured run; times are in seconds."""

    document: int
    replica: str
    is_hit: bool
    """Whether the replica had read the document before."""
    latency: float
    """From sending the request to the last byte of its response."""
    queued: float
    """From the arrival at the replica to the first turn: encoding, then waiting."""
    service: float
    """Work of the model, which nothing else at the replica has meanwhile."""

    @property
    def overhead(self) -> float:
        """What is neither: the proxy, the ingress, and the way between them."""
        return max(self.latency - self.queued - self.service, 0.0)


class Replay(BaseModel):
    """A measured run: what was sent, and what came back."""

    rate: float
    words: int
    max_tokens: int
    arrivals: list[float]
    documents: list[int]
    samples: list[Sample]
    """In the order of the arrivals."""

    @property
    def trace(self) -> Trace:
        """The requests."""
        return Trace(arrivals=self.arrivals, documents=self.documents)

    @property
    def replicas(self) -> int:
        """How many replicas answered."""
        return len({sample.replica for sample in self.samples})

    @cached_property
    def alone(self) -> list[bool]:
        """Of each request, whether its replica had nothing else to do when it arrived."""
        free: dict[str, float] = {}
        found = []
        for arrival, sample in zip(self.arrivals, self.samples, strict=True):
            found.append(arrival >= free.get(sample.replica, 0.0))
            ends = arrival + sample.latency
            free[sample.replica] = max(free.get(sample.replica, 0.0), ends)
        return found

    @property
    def placed(self) -> dict[int, int]:
        """The number of the replica that answered last about each document."""
        numbers = {name: n for n, name in enumerate({s.replica: None for s in self.samples})}
        return {sample.document: numbers[sample.replica] for sample in self.samples}


async def replay(
    url: str, trace: Trace, *, rate: float, words: int, max_tokens: int, warm_up: int = 20
) -> Replay:
    """Send each request at its time, whether earlier ones have been answered or not.

    Args:
        url: the proxy of the replicas, which name themselves in ``x-replica``.
        trace: the requests.
        rate: requests per second of the trace.
        words: length of each document.
        max_tokens: length of each answer.
        warm_up: requests about other documents that are sent before, and not recorded.

    Raises:
        RunFailedError: a request failed.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits) as http:

        async def send(document: int) -> tuple[httpx.Response, float]:
            body = {"document": text_of(document, words), "query": QUERY, "max_tokens": max_tokens}
            began = time.perf_counter()
            try:
                response = await http.post("/v1/answers", json=body)
            except httpx.HTTPError as error:
                raise RunFailedError(f"{url} does not answer: {error}") from None
            if not response.is_success:
                raise RunFailedError(f"a request failed: {response.status_code} {response.text}")
            return response, time.perf_counter() - began

        for number in range(warm_up):
            await send(-1 - number)
        began = time.perf_counter()

        async def send_at(arrival: float, document: int) -> tuple[httpx.Response, float]:
            await asyncio.sleep(began + arrival - time.perf_counter())
            return await send(document)

        pairs = zip(trace.arrivals, trace.documents, strict=True)
        answered = await asyncio.gather(*(send_at(*pair) for pair in pairs))
    return Replay(
        rate=rate,
        words=words,
        max_tokens=max_tokens,
        arrivals=trace.arrivals,
        documents=trace.documents,
        samples=_samples(trace.documents, answered),
    )


def _samples(
    documents: Sequence[int], answered: Sequence[tuple[httpx.Response, float]]
) -> list[Sample]:
    known: set[tuple[str, int]] = set()
    samples = []
    for document, (response, latency) in zip(documents, answered, strict=True):
        replica, timings = response.headers["x-replica"], response.json()["timings"]
        samples.append(
            Sample(
                document=document,
                replica=replica,
                is_hit=(replica, document) in known,
                latency=latency,
                queued=timings["queue_seconds"],
                service=sum(timings[name] for name in WORK),
            )
        )
        known.add((replica, document))
    return samples
