"""What batching gains: concurrent requests against the same requests in sequence."""

import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.tokens import ServerTokenizer
from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.benchmarks.serving.workload import Mix, Request
from refine_server.clients import AsyncRefineClient, RefineClient
from refine_server.clients.options import AdaptOptions
from refine_server.clients.types import Answer

BATCHES = re.compile(r'^refine_batch_size_(sum|count)\{operation="(\w+)"\}$')


class BatchBench:
    """Sends the same requests to one server concurrently and in sequence, and compares answers.

    Args:
        model: the model to serve.
        concurrency: number of requests, all of which are concurrent in one of the two ways.
        lengths: document lengths, in the syntax of ``bench load``.
        adapt: fields of ``adapt``; every request has its own seed.
        max_tokens: maximum number of tokens of every answer.
        threads: CPU threads of the server; None leaves the choice to the server.
    """

    def __init__(
        self,
        model: str,
        concurrency: int,
        lengths: str,
        adapt: AdaptOptions,
        max_tokens: int,
        threads: int | None = None,
    ) -> None:
        self.concurrency, self.mix = concurrency, Mix.parse(lengths, 0.0, 0)
        self.adapt, self.max_tokens = adapt, max_tokens
        self.options: dict[str, object] = {"model": model, "store": "none"}
        self.options |= {"max_active": concurrency, "max_batch": concurrency}
        if threads is not None:
            self.options["threads"] = threads

    def run(self, repeats: int) -> dict[str, Any]:
        """Return medians over ``repeats`` rounds; each round runs both ways."""
        with tempfile.TemporaryDirectory() as folder:
            server = ServerProcess(self.options, {}, Path(folder) / "log")
            server.start()
            try:
                with RefineClient(server.url) as client:
                    requests = self.mix.requests(self.concurrency, ServerTokenizer(client))
                asyncio.run(self._ask_all(server.url, requests[:2], at_once=1))  # warm-up
                rounds = [
                    [
                        asyncio.run(self._ask_all(server.url, requests, at_once))
                        for at_once in (1, self.concurrency)
                    ]
                    for _ in range(repeats)
                ]
                sizes = _mean_sizes(server.metrics({}))
            finally:
                server.stop()
        return self._result(requests, rounds, sizes)

    def _result(
        self,
        requests: Sequence[Request],
        rounds: list[list[tuple[float, list[Answer]]]],
        sizes: dict[str, float],
    ) -> dict[str, Any]:
        one_by_one, at_once = ([way[0] for way in ways] for ways in zip(*rounds, strict=True))
        outcomes = [
            [_outcome(answer) for answer in answers] for pair in rounds for _, answers in pair
        ]
        ratios = [a / b for a, b in zip(one_by_one, at_once, strict=True)]
        return {
            "model": self.options["model"],
            "concurrency": self.concurrency,
            "document_tokens": [request.tokens for request in requests],
            "adapt": dict(self.adapt),
            "max_tokens": self.max_tokens,
            "completion_tokens": [a.usage.completion_tokens for a in rounds[0][0][1]],
            "repeats": len(rounds),
            "one_by_one_seconds": statistics.median(one_by_one),
            "at_once_seconds": statistics.median(at_once),
            "throughput_ratio": statistics.median(ratios),
            "outputs_equal": all(way == outcomes[0] for way in outcomes),
            "mean_batch_sizes": sizes,
        }

    async def _ask_all(
        self, url: str, requests: Sequence[Request], at_once: int
    ) -> tuple[float, list[Answer]]:
        """Return the seconds until all are answered, and the answers in request order."""
        places = asyncio.Semaphore(at_once)
        async with AsyncRefineClient(url, attempts=1) as client:

            async def ask(number: int, request: Request) -> Answer:
                adapt: AdaptOptions = {**self.adapt, "seed": number}
                async with places:
                    return await client.answer(
                        request.query,
                        document=request.document,
                        context="document",
                        adapt=adapt,
                        max_tokens=self.max_tokens,
                    )

            began = time.perf_counter()
            answers = await asyncio.gather(*(ask(*numbered) for numbered in enumerate(requests)))
            return time.perf_counter() - began, answers


def _outcome(answer: Answer) -> tuple[object, ...]:
    """Return what must not depend on batching: the answer and the step that it comes from."""
    report = answer.adaptation_report
    steps = (0, 0) if report is None else (report.accepted_step, len(report.steps))
    return answer.answer, answer.kept_base_reason, *steps


def _mean_sizes(metrics: dict[str, float]) -> dict[str, float]:
    """Return the mean number of requests in a batch, over both ways, by operation."""
    found = {BATCHES.match(name): value for name, value in metrics.items()}
    sums = {(match[2], match[1]): value for match, value in found.items() if match}
    return {name: sums[name, "sum"] / sums[name, "count"] for name in {n for n, _ in sums}}
