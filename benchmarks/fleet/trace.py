"""Requests of a simulated or a real run: when they arrive, and which document each is about."""

import random
from dataclasses import dataclass

from refine_server.benchmarks.common.rows import DataError

WORDS = (
    *("amber", "anchor", "basalt", "beacon", "cedar", "cinder", "copper", "falcon", "fennel"),
    *("granite", "harbour", "ivory", "lantern", "meadow", "opal", "quarry", "saffron", "willow"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Requests in the order of their arrival."""

    arrivals: list[float]
    """Seconds from the beginning."""
    documents: list[int]
    """Number of each request's document; 0 is the most popular one."""


def zipf_trace(
    *, rate: float, requests: int, documents: int, exponent: float = 1.0, seed: int = 0
) -> Trace:
    """Draw requests that arrive as a Poisson process, about documents of Zipf's popularity.

    Args:
        rate: requests per second.
        requests: how many.
        documents: how many different documents there are.
        exponent: the n-th document is asked about in proportion to n to the power of minus this.
        seed: random seed.

    Raises:
        DataError: a number is not above zero.
    """
    if rate <= 0 or requests < 1 or documents < 1:
        raise DataError("--rate, --requests and --documents must be above 0")
    rng = random.Random(f"fleet/{seed}")
    now, arrivals = 0.0, []
    for _ in range(requests):
        now += rng.expovariate(rate)
        arrivals.append(now)
    weights = [rank**-exponent for rank in range(1, documents + 1)]
    return Trace(arrivals=arrivals, documents=rng.choices(range(documents), weights, k=requests))


def text_of(document: int, words: int, seed: int = 0) -> str:
    """Return the text of a document: so many words, of sentences that only it has."""
    rng = random.Random(f"document/{seed}/{document}")
    sentences, count = [f"This is report {document}."], 4
    while count < words:
        first, second = rng.choice(WORDS), rng.choice(WORDS)
        sentences.append(f"The {first} of the {second} has number {rng.randrange(10_000)}.")
        count += 8
    return " ".join(sentences)
