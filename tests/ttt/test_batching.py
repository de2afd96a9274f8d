"""Batches of operations and programs that await them."""

import threading
from collections.abc import Sequence
from typing import Self

from typing_extensions import override

from refine_server.ttt.batching import Batch, Call, Operation, run_batch
from refine_server.ttt.pieces import Pieces, run_pieces


def test_calls_run_concurrently_in_threads() -> None:
    """Each call waits for the other: in sequence they would never end."""
    barrier = threading.Barrier(2, timeout=60)
    calls = [Call(barrier.wait, threads=2) for _ in range(2)]
    assert calls[1].can_batch_with(calls[0])
    assert sorted(run_batch(calls)) == [0, 1]


def test_a_single_threaded_call_is_not_batched() -> None:
    assert not Call(int).can_batch_with(Call(int))


class Counting(Operation[str]):
    """Three pieces, whose operations may be interrupted or fail between them."""

    name = "counting"

    def __init__(self, log: list[str], name: str, threads: int = 1) -> None:
        self.log, self.own, self._threads = log, name, threads
        self.interruption: str | None = None
        self.fails = False

    @property
    @override
    def threads(self) -> int:
        return self._threads

    @override
    def interrupted(self) -> str | None:
        return self.interruption

    @classmethod
    @override
    def run_batch(cls, operations: Sequence[Self]) -> Sequence[str | Exception]:
        return run_pieces(cls.in_pieces(operations))

    @classmethod
    @override
    def in_pieces(cls, operations: Sequence[Self]) -> Pieces[Sequence[str | Exception]]:
        names = "".join(operation.own for operation in operations)
        try:
            for piece in range(3):
                if piece:
                    yield
                if piece and any(operation.fails for operation in operations):
                    raise ValueError(names)
                operations[0].log.append(f"{names}{piece}")
        finally:
            operations[0].log.append(f"{names} ends")
        return [operation.own for operation in operations]


def test_a_batch_runs_piece_by_piece() -> None:
    log: list[str] = []
    operations = [Counting(log, name) for name in "ab"]
    batch = Batch(operations)
    assert batch.run_piece() == []
    assert log == ["ab0"]
    assert batch.run_piece() == []
    assert batch.run_piece() == [(operations[0], "a"), (operations[1], "b")]
    assert log == ["ab0", "ab1", "ab2", "ab ends"]


def test_an_interrupted_operation_ends_and_the_others_go_on() -> None:
    log: list[str] = []
    first, second = (Counting(log, name) for name in "ab")
    batch = Batch([first, second])
    first.interruption = "too late"
    assert batch.run_piece() == [(first, "too late")]
    assert batch.run_piece() == []
    assert batch.run_piece() == [(second, "b")]


def test_a_batch_that_all_have_left_holds_nothing_any_more() -> None:
    log: list[str] = []
    operations = [Counting(log, name) for name in "ab"]
    batch = Batch(operations)
    batch.run_piece()
    for operation in operations:
        assert log == ["ab0"]
        batch.leave(operation)
    assert log == ["ab0", "ab ends"]


def test_a_batch_that_fails_in_a_later_piece_is_run_again_one_by_one() -> None:
    log: list[str] = []
    operations = [Counting(log, name) for name in "ab"]
    operations[1].fails = True
    a, failure = run_batch(operations)
    assert a == "a"
    assert isinstance(failure, ValueError)
    assert log == ["ab0", "ab ends", "a0", "a1", "a2", "a ends", "b0", "b ends"]


def test_parts_in_threads_end_together() -> None:
    log: list[str] = []
    assert run_batch([Counting(log, name, threads=2) for name in "abc"]) == ["a", "b", "c"]
    assert {"ac ends", "b ends"} < set(log)
