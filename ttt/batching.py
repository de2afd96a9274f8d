"""Heavy work as something that a request's coroutine asks for, so that many can be served at once.

A coroutine yields events and operations. It is sent the result of an operation, or has its failure
raised at that place; between two operations it does next to nothing. Whoever drives coroutines
chooses whose operation runs next and which others run with it in one batch.
"""

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Event = TypeVar("Event")


class Operation(ABC):
    """One piece of heavy work of one request."""

    name: ClassVar[str]
    """What metrics call it."""
    gathers: ClassVar[bool] = False
    """Whether it gains enough from company to let work go first that company may come from."""

    @property
    def room(self) -> int:
        """The most operations of its kind and size that are worth one batch."""
        return 1

    @property
    def threads(self) -> int:
        """The most threads that a batch of its kind is shared out to, each with its own part."""
        return 1

    def fits(self, lead: Self) -> bool:
        """Whether it can run in one batch with ``lead``, an operation of the same class."""
        return False

    @classmethod
    @abstractmethod
    def run_together(cls, operations: Sequence[Self]) -> list[Any]:
        """The results, in order; an exception stands for the result of one that failed by itself.

        Raises:
            Exception: the batch failed as a whole, and nothing was changed.
        """


@dataclass(frozen=True)
class Alone(Operation):
    """Work that has no batched form: one call, at most in another thread beside others."""

    name: ClassVar[str] = "alone"
    call: Callable[[], Any]
    threads: int = 1

    @property
    def room(self) -> int:
        """See ``Operation.room``."""
        return self.threads

    def fits(self, lead: Self) -> bool:
        """See ``Operation.fits``."""
        return self.room > 1

    @classmethod
    def run_together(cls, operations: Sequence[Self]) -> list[Any]:
        """See ``Operation.run_together``."""
        return [operation.call() for operation in operations]


Coroutine = Generator[Item | Operation, Any, T]
"""A coroutine that yields items and operations, and returns a T."""


def run_batch(operations: Sequence[Operation]) -> list[Any]:
    """Results of operations that fit together; an exception where one failed.

    Operations share nothing that is written, so the parts of a batch can run in threads of their
    own. When one fails as a whole, its members are run one by one: only that whose fault it is
    fails again.
    """
    parts = min(operations[0].threads, len(operations))
    if parts == 1:
        return _run_part(operations)
    shares = [operations[part::parts] for part in range(parts)]
    others = [_threads(parts - 1).submit(_run_part, share) for share in shares[1:]]
    outcomes = [_run_part(shares[0]), *(other.result() for other in others)]
    return [outcomes[place % parts][place // parts] for place in range(len(operations))]


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "refine-share")


def _run_part(operations: Sequence[Operation]) -> list[Any]:
    if len(operations) > 1:
        try:
            return type(operations[0]).run_together(operations)
        except Exception:
            logger.warning("a batch of %d failed; one by one", len(operations), exc_info=True)
    outcomes = []
    for operation in operations:
        try:
            outcomes += type(operation).run_together([operation])
        except Exception as error:
            outcomes.append(error)
    return outcomes


def resume(work: Coroutine[Item, Any], outcome: Any) -> Item | Operation:
    """Go on with an operation's result or failure (None after an item); the next thing yielded."""
    if isinstance(outcome, Exception):
        return work.throw(outcome)
    return work.send(outcome)


def one_by_one(work: Coroutine[Item, T]) -> Generator[Item, None, T]:
    """The items of a coroutine, its operations done as they come: no batches, no turns."""
    outcome = None
    try:
        while True:
            item = resume(work, outcome)
            outcome = None
            if isinstance(item, Operation):
                [outcome] = run_batch([item])
            else:
                yield item
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        work.close()


def convert(work: Coroutine[Item, T], to: Callable[[Item], Event | None]) -> Coroutine[Event, T]:
    """The same coroutine with other items; None leaves one out. Operations pass through."""
    outcome = None
    while True:
        try:
            item = work.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value
        outcome = None
        if isinstance(item, Operation):
            outcome = yield item
        elif (event := to(item)) is not None:
            yield event
