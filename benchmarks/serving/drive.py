"""Sends requests at their arrival times and records when each part of an answer came."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from refine_server.benchmarks.serving.workload import Request
from refine_server.clients import AsyncRefineClient, ClientError
from refine_server.clients.options import AdaptOptions
from refine_server.clients.types import Answer, AnswerDelta

Arrivals = Literal["poisson", "closed"]


@dataclass
class Observed:
    """One request as its client saw it. Times are in seconds from when it was due."""

    due: float
    """When it was to be sent, from the start of the level."""
    repeated: bool
    total: float = 0.0
    """Time to the end of the answer."""
    first: float | None = None
    """Time to the first piece of the answer; None if there was none."""
    gaps: list[float] = field(default_factory=list)
    """Times between the answer's pieces."""
    answer: Answer | None = None
    """The answer; None after an error."""
    error: str | None = None
    """Type of the error, if any."""
    reason: str | None = None
    """The error's message."""


@dataclass(frozen=True)
class Level:
    """One level of load: its requests and its duration."""

    arrivals: Arrivals
    load: float
    seconds: float
    requests: list[Observed]


@dataclass(frozen=True)
class Driver:
    """Sends requests to a server at one level of load after another."""

    url: str
    """URL of the server."""
    arrivals: Arrivals
    """``poisson``: requests are sent when they are due, ``load`` of them per second, whether or
    not others have been answered (open loop); ``closed``: each of ``load`` clients sends its
    next request when it has its answer."""
    adapt: AdaptOptions
    """Adaptation settings."""
    max_tokens: int
    """Maximum length of an answer in tokens."""
    seed: int = 0
    """Random seed for the arrival times."""

    def run(self, load: float, requests: Sequence[Request]) -> Level:
        """Send all requests at one level of load.

        Raises:
            ClientError: the server is not ready.
        """
        bar = Progress(
            TextColumn(f"{self.arrivals} {load:g}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        with bar:
            return asyncio.run(self._run(load, requests, bar))

    async def _run(self, load: float, requests: Sequence[Request], bar: Progress) -> Level:
        task = bar.add_task("", total=len(requests))
        observed: list[Observed] = []
        async with AsyncRefineClient(self.url, attempts=1) as client:
            if not await client.is_ready():
                raise ClientError(f"no server is ready at {self.url}")
            began = time.perf_counter()

            async def send(request: Request, due: float) -> None:
                observed.append(await self._send(client, request, began, due))
                bar.advance(task)

            if self.arrivals == "poisson":
                async with asyncio.TaskGroup() as group:
                    async for request, due in self._due(load, requests, began):
                        group.create_task(send(request, due))
            else:
                waiting = iter(requests)

                async def ask_on() -> None:
                    for request in waiting:
                        await send(request, time.perf_counter() - began)

                async with asyncio.TaskGroup() as group:
                    for _ in range(int(load)):
                        group.create_task(ask_on())
            seconds = time.perf_counter() - began
        return Level(self.arrivals, load, seconds, sorted(observed, key=lambda o: o.due))

    async def _due(
        self, rate: float, requests: Sequence[Request], began: float
    ) -> AsyncIterator[tuple[Request, float]]:
        """Yield requests at the times of a Poisson process with ``rate`` per second."""
        rng = random.Random(f"arrivals/{self.seed}/{rate}")
        due = 0.0
        for request in requests:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(began + due - time.perf_counter(), 0.0))
            yield request, due

    async def _send(
        self, client: AsyncRefineClient, request: Request, began: float, due: float
    ) -> Observed:
        seen = Observed(due, request.repeated)
        last = None
        try:
            async for event in client.stream_answer(
                request.query,
                document=request.document,
                context="document",
                adapt=self.adapt,
                max_tokens=self.max_tokens,
            ):
                now = time.perf_counter() - began - due
                if isinstance(event, AnswerDelta):
                    if last is None:
                        seen.first = now
                    else:
                        seen.gaps.append(now - last)
                    last = now
                elif isinstance(event, Answer):
                    seen.answer = event
        except ClientError as error:
            seen.error, seen.reason = error.code or type(error).__name__, str(error)
        seen.total = time.perf_counter() - began - due
        return seen
