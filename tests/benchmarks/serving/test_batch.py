"""``bench batch``: the same requests in both ways, and the comparison of the answers."""

from typing import Any

import pytest

from refine_server.benchmarks.serving.batch import BatchBench, _mean_sizes
from refine_server.benchmarks.serving.workload import Request

REQUESTS = [Request(f"document {n}", f"question {n}", 600, repeated=False) for n in range(4)]


def bench(**options: Any) -> BatchBench:
    asked: dict[str, Any] = {
        "adapt": {"objective": "ntp", "optimizer": {"steps": 1}},
        "max_tokens": 4,
        **options,
    }
    return BatchBench("tiny", len(REQUESTS), "600", **asked)


@pytest.mark.anyio
@pytest.mark.parametrize("at_once", [1, 3])
async def test_concurrency_is_limited(scripted: Any, at_once: int) -> None:
    scripted.seconds = 0.05
    scripted.say = lambda body: f"to {body['query']}"
    seconds, answers = await bench()._ask_all(scripted.url, REQUESTS, at_once)
    assert scripted.most_active == at_once
    assert seconds >= 0.05 * len(REQUESTS) / at_once
    assert [a.answer for a in answers] == [f"to question {n}" for n in range(4)]


@pytest.mark.anyio
async def test_every_request_has_its_own_seed_whichever_way(scripted: Any) -> None:
    for at_once in (1, 4):
        await bench(max_tokens=7)._ask_all(scripted.url, REQUESTS, at_once)
    asked = [
        (b["document"], b["adapt"]["seed"], b["adapt"]["optimizer"]["steps"])
        for b in scripted.bodies
    ]
    assert sorted(asked[:4]) == sorted(asked[4:]) == [(f"document {n}", n, 1) for n in range(4)]
    assert {body["max_tokens"] for body in scripted.bodies} == {7}


@pytest.mark.anyio
@pytest.mark.parametrize("changed", [None, 2])
async def test_answers_that_depend_on_batching_are_detected(
    scripted: Any, changed: int | None
) -> None:
    _, alone = await bench()._ask_all(scripted.url, REQUESTS, 4)
    if changed is not None:
        question = REQUESTS[changed].query
        scripted.say = lambda body: "no" if body["query"] == question else "yes"
    _, together = await bench()._ask_all(scripted.url, REQUESTS, 4)
    result = bench()._result(REQUESTS, [[(6.0, alone), (2.0, together)]], {})
    assert result["outputs_equal"] == (changed is None)
    assert result["throughput_ratio"] == 3.0


@pytest.mark.anyio
async def test_the_ratio_is_the_median_of_the_rounds(scripted: Any) -> None:
    _, answers = await bench()._ask_all(scripted.url, REQUESTS, 4)
    times = [(8.0, 4.0), (9.0, 3.0), (2.0, 2.0)]
    rounds = [[(one, answers), (at_once, answers)] for one, at_once in times]
    result = bench()._result(REQUESTS, rounds, {"adapt": 2.5})
    assert (result["one_by_one_seconds"], result["at_once_seconds"]) == (8.0, 3.0)
    assert result["throughput_ratio"] == 2.0
    assert (result["repeats"], result["document_tokens"]) == (3, [600] * 4)
    assert result["mean_batch_sizes"] == {"adapt": 2.5}


def test_sizes_of_batches_come_from_the_metrics() -> None:
    metrics = {
        'refine_batch_size_sum{operation="decode"}': 12.0,
        'refine_batch_size_count{operation="decode"}': 4.0,
        'refine_batch_size_sum{operation="adapt"}': 3.0,
        'refine_batch_size_count{operation="adapt"}': 2.0,
        'refine_batch_size_bucket{operation="adapt"}': 9.0,
        "refine_requests_active": 1.0,
    }
    assert _mean_sizes(metrics) == {"decode": 3.0, "adapt": 1.5}
