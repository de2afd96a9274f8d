"""Heavy work as operations that a request's program awaits, so that many requests can share it.

A program is an ``async def`` that awaits operations and nothing else: no event loop runs it.
Awaiting an operation suspends the program, and the driver of the program runs the operation and
resumes the program with the result, or raises the failure at that place. Between two operations a
program does next to nothing, so the driver decides at every operation whose work comes next and
which operations of different requests run as one batch.
"""

import functools
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from typing_extensions import override

logger = logging.getLogger(__name__)

R = TypeVar("R")
Event = TypeVar("Event")


class Operation(ABC, Generic[R]):
    """One piece of heavy work of one request; awaiting it gives its result of type R."""

    name: ClassVar[str]
    """Label of the operation in metrics."""
    waits_for_peers: ClassVar[bool] = False
    """Whether the scheduler should first run pending reads of other requests, whose operations
    could then join this one's batch."""

    @property
    def max_batch_size(self) -> int:
        """The largest batch of operations like this one that still gains throughput."""
        return 1

    @property
    def threads(self) -> int:
        """Number of threads that may share a batch, each running a part of it."""
        return 1

    def can_batch_with(self, head: Self) -> bool:
        """Return whether this operation can run in a batch that starts with ``head``."""
        return False

    @classmethod
    @abstractmethod
    def run_batch(cls, operations: Sequence[Self]) -> Sequence[R | Exception]:
        """Return the results in order, an exception in place of the result of one that failed.

        Raises:
            Exception: if the batch failed as a whole; nothing was changed then.
        """

    def __await__(self) -> Generator["Operation[Any]", R, R]:
        """Suspend the program until its driver sends the result."""
        return (yield self)


@dataclass(frozen=True)
class Call(Operation[R]):
    """A call without a batched form; several can run beside each other in threads."""

    name: ClassVar[str] = "call"
    call: Callable[[], R]
    threads: int = 1

    @property
    @override
    def max_batch_size(self) -> int:
        return self.threads

    @override
    def can_batch_with(self, head: Self) -> bool:
        return self.threads > 1

    @classmethod
    @override
    def run_batch(cls, operations: Sequence[Self]) -> Sequence[R | Exception]:
        return [operation.call() for operation in operations]


Program = Coroutine[Operation[Any], Any, R]
"""A coroutine that awaits operations and other programs only, and returns an R."""


def run_batch(operations: Sequence[Operation[Any]]) -> list[Any]:
    """Run operations that can batch with each other; return results, an exception where one failed.

    Operations share nothing that is written, so the parts of a batch can run in threads of their
    own. A part that fails as a whole is run again one operation at a time, so that only the
    operation at fault fails.
    """
    parts = min(operations[0].threads, len(operations))
    if parts == 1:
        return _run_part(operations)
    shares = [operations[part::parts] for part in range(parts)]
    others = [_pool(parts - 1).submit(_run_part, share) for share in shares[1:]]
    outcomes = [_run_part(shares[0]), *(other.result() for other in others)]
    return [outcomes[place % parts][place // parts] for place in range(len(operations))]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "refine-batch")


def _run_part(operations: Sequence[Operation[Any]]) -> list[Any]:
    if len(operations) > 1:
        try:
            return list(type(operations[0]).run_batch(operations))
        except Exception:
            logger.warning("a batch of %d failed; one by one", len(operations), exc_info=True)
    outcomes: list[Any] = []
    for operation in operations:
        try:
            outcomes += type(operation).run_batch([operation])
        except Exception as error:
            outcomes.append(error)
    return outcomes


def resume(program: Program[Any], outcome: object = None) -> Operation[Any]:
    """Resume a program with its operation's result or failure; return the next operation.

    Args:
        program: the program to resume, or to start.
        outcome: the result, or the exception, of the operation that the program awaits; None to
            start the program.

    Raises:
        StopIteration: the program has returned; ``value`` is its result.
        Exception: whatever the program itself raises.
    """
    if isinstance(outcome, Exception):
        return program.throw(outcome)
    return program.send(outcome)


def run(program: Program[R]) -> R:
    """Run a program to its end, each operation alone as it comes, and return its result."""
    outcome: object = None
    try:
        while True:
            [outcome] = run_batch([resume(program, outcome)])
    except StopIteration as end:
        result: R = end.value
        return result
    finally:
        program.close()


def stream(start: Callable[[Callable[[Event], None]], Program[Any]]) -> Iterator[Event]:
    """Run a program as ``run`` does; yield its events as they are emitted.

    Args:
        start: makes the program, given the function to which it emits its events.
    """
    events: deque[Event] = deque()
    program = start(events.append)
    outcome: object = None
    try:
        while True:
            try:
                operation = resume(program, outcome)
            finally:
                while events:
                    yield events.popleft()
            [outcome] = run_batch([operation])
    except StopIteration:
        return
    finally:
        program.close()
