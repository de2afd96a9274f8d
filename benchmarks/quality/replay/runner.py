"""Asks all questions, several at a time, and stores each answer as it comes."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from refine_server.benchmarks.quality.replay.folder import RunFolder
from refine_server.benchmarks.quality.replay.questions import Question, Result
from refine_server.clients import AsyncRefineClient, ClientError
from refine_server.clients.errors import ConnectionFailedError, ReadTimeoutError
from refine_server.clients.options import AdaptOptions

LINES = 20
"""Number of progress lines when the output is not a terminal."""


@dataclass(frozen=True)
class Replay:
    """One pass over questions."""

    url: str
    """URL of the server."""
    questions: Sequence[Question]
    objectives: Sequence[str]
    """Each question is asked under all of them in sequence, so that the answers of an
    interrupted run can still be compared."""
    adapt: AdaptOptions
    """Adaptation settings; the objective is added for each request."""
    concurrency: int = 1
    """Maximum number of concurrent requests."""

    def run(self, folder: RunFolder) -> None:
        """Ask the questions that the folder has no answer to.

        Raises:
            ClientError: the server is gone. The answers so far are kept.
        """
        done = folder.done()
        todo = [
            (question, objective)
            for question in self.questions
            for objective in self.objectives
            if (question.task, question.id, objective) not in done
        ]
        tracker = _Tracker(len(todo), folder.results())
        with tracker:
            try:
                asyncio.run(self._run(iter(todo), folder, tracker))
            except* ClientError as group:
                raise group.exceptions[0] from None

    async def _run(
        self, todo: Iterator[tuple[Question, str]], folder: RunFolder, tracker: "_Tracker"
    ) -> None:
        async def work(client: AsyncRefineClient) -> None:
            for question, objective in todo:
                await self._ask(client, question, objective, folder, tracker)

        async with AsyncRefineClient(self.url) as client, asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(work(client))

    async def _ask(
        self,
        client: AsyncRefineClient,
        question: Question,
        objective: str,
        folder: RunFolder,
        tracker: "_Tracker",
    ) -> None:
        adapt: AdaptOptions = {**self.adapt, "objective": objective}  # type: ignore[typeddict-item]
        began = time.perf_counter()
        try:
            answer = await client.answer(
                question.query,
                document=question.document,
                context="document",
                on_overflow="truncate_middle",  # as LongBench does
                adapt=adapt,
                max_tokens=question.max_tokens,
            )
        except ClientError as error:
            if isinstance(error, ConnectionFailedError) and not isinstance(error, ReadTimeoutError):
                raise
            folder.keep_error(question, objective, error)
            tracker.failed()
            return
        result = Result.of(question, objective, answer, time.perf_counter() - began)
        folder.keep(question, answer.answer, result)
        tracker.answered(result)


class _Tracker:
    """Shows progress on stderr: a bar with the remaining time on a terminal, else some lines."""

    def __init__(self, total: int, before: Sequence[Result]) -> None:
        self.errors = 0
        self._total = total
        self._passed = 0
        self._scores = defaultdict[str, list[float]](list)
        for result in before:
            self._scores[result.objective].append(result.score)
        self._console = Console(stderr=True)
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("asking"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=True,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("", total=total, numbers="")
        self._shown = self._bar if self._console.is_terminal else nullcontext()

    def __enter__(self) -> None:
        self._shown.__enter__()

    def __exit__(self, *details: object) -> None:
        self._shown.__exit__(None, None, None)

    def answered(self, result: Result) -> None:
        self._scores[result.objective].append(result.score)
        self._advance()

    def failed(self) -> None:
        self.errors += 1
        self._advance()

    def _advance(self) -> None:
        self._passed += 1
        numbers = "  ".join(f"{name} {fmean(s):.1f}" for name, s in sorted(self._scores.items()))
        if self.errors:
            numbers += f"  errors {self.errors}"
        self._bar.update(self._task, advance=1, numbers=numbers)
        every = max(self._total // LINES, 1)
        if not self._console.is_terminal and self._passed % every == 0:
            passed = time.monotonic() - self._began
            left = passed / self._passed * (self._total - self._passed)
            line = f"{self._passed}/{self._total}  {numbers}  {passed:.0f} s, {left:.0f} s left"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
