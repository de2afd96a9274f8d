"""Heavy work as operations that a request's program awaits, so that many requests can share it.

A program is an ``async def`` that awaits operations and nothing else: no event loop runs it.
Awaiting an operation suspends the program, and the driver of the program runs the operation and
resumes the program with the result, or raises the failure at that place. Between two operations a
program does next to nothing, so the driver decides at every operation whose work comes next and
which operations of different requests run as one batch.

An operation that takes long runs in pieces: it is a generator that yields after each of them, and
the driver may run other work before the next one.
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

from refine_server.ttt.pieces import Pieces, run_pieces

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

    @classmethod
    def in_pieces(cls, operations: Sequence[Self]) -> Pieces[Sequence[R | Exception]]:
        """Do what ``run_batch`` does, in pieces; here it is a single one."""
        yield from ()
        return cls.run_batch(operations)

    def interrupted(self) -> R | None:
        """Return the result with which the operation ends between two pieces; None if it goes on.

        It then leaves its batch, whose other operations go on.
        """
        return None

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


@dataclass(frozen=True)
class LongCall(Operation[R]):
    """A call that makes its result in pieces; several can run beside each other in threads."""

    name: ClassVar[str] = "call"
    call: Callable[[], Pieces[R]]
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
        return run_pieces(cls.in_pieces(operations))

    @classmethod
    @override
    def in_pieces(cls, operations: Sequence[Self]) -> Pieces[Sequence[R | Exception]]:
        results: list[R | Exception] = []
        for operation in operations:
            results.append((yield from operation.call()))
        return results


Program = Coroutine[Operation[Any], Any, R]
"""A coroutine that awaits operations and other programs only, and returns an R."""


class Batch:
    """Operations that can batch with each other, and that run together, piece by piece.

    Operations share nothing that is written, so the parts of a batch can run in threads of their
    own. A part that fails as a whole is run again one operation at a time, so that only the
    operation at fault fails.
    """

    def __init__(self, operations: Sequence[Operation[Any]]) -> None:
        parts = min(operations[0].threads, len(operations))
        self._parts = [_Part(operations[part::parts]) for part in range(parts)]
        self._left = list(operations)

    def run_piece(self) -> list[tuple[Operation[Any], Any]]:
        """Run the next piece of every part that has not ended.

        Returns:
            The operations that have ended with it, in order, and their results, an exception where
            one failed. All parts end together; an operation that is interrupted ends before.
        """
        first, *others = [part for part in self._parts if not part.has_ended]
        futures = [_pool(len(others)).submit(part.run_piece) for part in others]
        first.run_piece()
        for future in futures:
            future.result()
        if all(part.has_ended for part in self._parts):
            results = {id(own): result for part in self._parts for own, result in part.results()}
            ended = [(operation, results[id(operation)]) for operation in self._left]
        else:
            asked = [(operation, operation.interrupted()) for operation in self._left]
            ended = [(operation, result) for operation, result in asked if result is not None]
        for operation, _ in ended:
            self.leave(operation)
        return ended

    def leave(self, operation: Operation[Any]) -> None:
        """Go on without an operation; free what the batch holds when none is left."""
        self._left = [own for own in self._left if own is not operation]
        if not self._left:
            for part in self._parts:
                part.close()


class _Part:
    """The operations of a batch that run in one thread."""

    def __init__(self, operations: Sequence[Operation[Any]]) -> None:
        self._operations = operations
        self._pieces = _in_pieces(operations)
        self._results: list[Any] = []
        self.has_ended = False

    def run_piece(self) -> None:
        """Run the next piece, which may be the last."""
        try:
            next(self._pieces)
        except StopIteration as end:
            self._results, self.has_ended = end.value, True

    def results(self) -> Iterator[tuple[Operation[Any], Any]]:
        """Yield the operations and their results; the part has ended."""
        return zip(self._operations, self._results, strict=True)

    def close(self) -> None:
        """End the work where it is."""
        self._pieces.close()


def _in_pieces(operations: Sequence[Operation[Any]]) -> Pieces[list[Any]]:
    if len(operations) > 1:
        try:
            return list((yield from type(operations[0]).in_pieces(operations)))
        except Exception:
            logger.warning("a batch of %d failed; one by one", len(operations), exc_info=True)
    outcomes: list[Any] = []
    for operation in operations:
        try:
            outcomes += yield from type(operation).in_pieces([operation])
        except Exception as error:
            outcomes.append(error)
    return outcomes


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "refine-batch")


def run_batch(operations: Sequence[Operation[Any]]) -> list[Any]:
    """Run a ``Batch`` to its end; return the results, an exception where an operation failed."""
    batch, results = Batch(operations), dict[int, Any]()
    while len(results) < len(operations):
        results |= {id(operation): result for operation, result in batch.run_piece()}
    return [results[id(operation)] for operation in operations]


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
