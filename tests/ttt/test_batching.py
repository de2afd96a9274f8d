"""Batches of operations and programs that await them."""

import threading

from refine_server.ttt.batching import Call, run_batch


def test_calls_run_concurrently_in_threads() -> None:
    """Each call waits for the other: in sequence they would never end."""
    barrier = threading.Barrier(2, timeout=60)
    calls = [Call(barrier.wait, threads=2) for _ in range(2)]
    assert calls[1].can_batch_with(calls[0])
    assert sorted(run_batch(calls)) == [0, 1]


def test_a_single_threaded_call_is_not_batched() -> None:
    assert not Call(int).can_batch_with(Call(int))
