"""What a fleet needs at each rate of requests, with affinity and without; and its validation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refine_server.benchmarks.fleet.replay import Replay
from refine_server.benchmarks.fleet.simulate import (
    Fleet,
    Outcome,
    Service,
    percentile,
    simulate,
)
from refine_server.benchmarks.fleet.trace import zipf_trace

STEP = 1.25
"""Factor between two numbers of replicas that are tried."""
MAX_REJECTED = 0.001
"""Share of requests that may be refused by a fleet that is large enough."""
VALIDATION_SEEDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a fleet has to do."""

    rates: Sequence[float]
    """Requests per second."""
    documents: int
    """Documents that are asked about."""
    exponent: float
    """Of Zipf's law."""
    cached_documents: int
    """Documents that a replica keeps."""
    document_bytes: int
    """Memory of a document that is kept."""
    bound: float
    """Seconds that 99 of 100 answers may take."""
    requests: int
    """Requests that are simulated at each rate."""
    fallbacks: int = 127
    max_queue: int = 8
    """Both as in ``Fleet``."""
    seed: int = 0


def study(question: Question, service: Service) -> Iterator[dict[str, Any]]:
    """Yield a row for each rate and way of routing, with the smallest fleet that is enough."""
    for rate in question.rates:
        for affinity in (True, False):
            yield row_of(rate, affinity, smallest(rate, affinity, question, service), question)


def smallest(rate: float, affinity: bool, question: Question, service: Service) -> Outcome | None:
    """Return what becomes of the requests in the smallest fleet that is enough.

    Numbers of replicas are tried from what hits alone would need upwards, in steps of a fourth.

    Returns:
        None if no fleet is enough: some replica is always full.
    """
    trace = zipf_trace(
        rate=rate,
        requests=question.requests,
        documents=question.documents,
        exponent=question.exponent,
        seed=question.seed,
    )
    before = zipf_trace(
        rate=rate,
        requests=4 * question.requests,
        documents=question.documents,
        exponent=question.exponent,
        seed=question.seed + 1,
    )
    mean = {kind: sum(values) / len(values) for kind, values in _kinds(service).items()}
    count = math.ceil(rate * mean["hits"])
    most = 4 * math.ceil(rate * mean["misses"]) + 4
    while count <= most:
        fleet = Fleet(
            replicas=count,
            affinity=affinity,
            cached_documents=question.cached_documents,
            fallbacks=question.fallbacks,
            max_queue=question.max_queue,
        )
        outcome = simulate(trace, service, fleet, warm_up=before.documents, seed=question.seed)
        rejected = outcome.rejected / question.requests
        if rejected <= MAX_REJECTED and outcome.percentile(0.99) <= question.bound:
            return outcome
        count = max(count + 1, math.ceil(count * STEP))
    return None


def row_of(
    rate: float, affinity: bool, outcome: Outcome | None, question: Question
) -> dict[str, Any]:
    """Return the row of a table."""
    row: dict[str, Any] = {"rate": rate, "affinity": affinity}
    if outcome is None:
        return row | {"replicas": None}
    return row | {
        "replicas": outcome.replicas,
        "p50": outcome.percentile(0.5),
        "p99": outcome.percentile(0.99),
        "hit_ratio": outcome.hit_ratio,
        "utilization": outcome.utilization,
        "document_bytes": outcome.kept_documents * question.document_bytes,
    }


def validate(replay: Replay, cached_documents: int, *, own: bool) -> dict[str, Any]:
    """Simulate a measured run, with its documents on the replicas where they were, and compare.

    Args:
        replay: the measured run.
        cached_documents: documents that a replica keeps.
        own: whether each request takes its own measured time at the replica, so that routing,
            caches and queues alone are simulated; False: a time that is drawn, as in ``study``.

    Returns:
        For each figure the measured and the simulated value, the latter a mean over seeds, and
        their relative difference.
    """
    service = replace(Service.of(replay), own=replay if own else None)
    fleet = Fleet(
        replicas=replay.replicas,
        affinity=True,
        cached_documents=cached_documents,
        max_queue=len(replay.samples),
    )
    outcomes = [
        simulate(replay.trace, service, fleet, placed=replay.placed, seed=seed)
        for seed in range(VALIDATION_SEEDS)
    ]
    latencies = [sample.latency for sample in replay.samples]
    measured = {
        "p50": percentile(latencies, 0.5),
        "p95": percentile(latencies, 0.95),
        "p99": percentile(latencies, 0.99),
        "mean": sum(latencies) / len(latencies),
        "hit_ratio": sum(sample.is_hit for sample in replay.samples) / len(replay.samples),
    }
    simulated = {
        "p50": _mean([outcome.percentile(0.5) for outcome in outcomes]),
        "p95": _mean([outcome.percentile(0.95) for outcome in outcomes]),
        "p99": _mean([outcome.percentile(0.99) for outcome in outcomes]),
        "mean": _mean([_mean(outcome.latencies) for outcome in outcomes]),
        "hit_ratio": _mean([outcome.hit_ratio for outcome in outcomes]),
    }
    return {
        name: {
            "measured": value,
            "simulated": simulated[name],
            "difference": simulated[name] / value - 1.0,
        }
        for name, value in measured.items()
    }


def _kinds(service: Service) -> dict[str, Sequence[float]]:
    return {"hits": service.hits, "misses": service.misses}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
