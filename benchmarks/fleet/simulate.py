"""A discrete-event simulation of a fleet: queues, caches and routing, with measured service times.

A replica encodes requests as they arrive, and then serves one after another. It keeps the documents
that it has read; the least recently used one leaves first. A request about a document that it keeps
is a hit, and takes the time of a measured hit; any other takes that of a measured miss.
"""

import bisect
import hashlib
import random
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import simpy

from refine_server.benchmarks.fleet.replay import Replay
from refine_server.benchmarks.fleet.trace import Trace

VIRTUAL_NODES = 100
"""Places of a replica on the ring; Ray Serve's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """Measured seconds, drawn from at random."""

    hits: Sequence[float]
    misses: Sequence[float]
    encodings: Sequence[float]
    """From the arrival to the first turn of requests that had no other before them."""
    overheads: Sequence[float]
    own: Replay | None = None
    """The run whose requests are simulated, which then take what they took: on a
    machine that does other work, slow requests follow each other; independent draws do not."""

    @classmethod
    def of(cls, replay: Replay) -> "Service":
        """Return the service times of a measured run."""
        return cls(
            hits=[sample.service for sample in replay.samples if sample.is_hit],
            misses=[sample.service for sample in replay.samples if not sample.is_hit],
            encodings=[
                sample.queued
                for sample, alone in zip(replay.samples, replay.alone, strict=True)
                if alone
            ],
            overheads=[sample.overhead for sample in replay.samples],
        )

    def encoding(self, number: int, rng: random.Random) -> float:
        """Return the seconds from the arrival of a request to its first turn, if it is alone."""
        if self.own is not None and self.own.alone[number]:
            return self.own.samples[number].queued
        return rng.choice(self.encodings)

    def draw(self, number: int, is_hit: bool, rng: random.Random) -> tuple[float, float]:
        """Return the seconds of a request at the replica, and those on the way.

        Args:
            number: of the request in the trace.
            is_hit: whether the replica has its document.
            rng: draws, where the request is no measured one.
        """
        own = None if self.own is None else self.own.samples[number]
        if own is not None and own.is_hit == is_hit:
            return own.service, own.overhead
        return rng.choice(self.hits if is_hit else self.misses), rng.choice(self.overheads)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """What serves the requests."""

    replicas: int
    affinity: bool
    """Whether a document's requests go to one replica, or each to any."""
    cached_documents: int
    """Documents that a replica keeps."""
    max_queue: int = 32
    """Requests that wait at a replica."""
    fallbacks: int = 2
    """Replicas that are tried, in the ring's order, after one that is full."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of the requests."""

    latencies: list[float] = field(default_factory=list)
    hits: int = 0
    rejected: int = 0
    """Requests that found every replica full that they were tried at."""
    busy_seconds: float = 0.0
    seconds: float = 0.0
    """From the first arrival to the last answer."""
    replicas: int = 0
    kept_documents: int = 0
    """Documents in the memory of all replicas at the end; one that two have counts twice."""

    @property
    def hit_ratio(self) -> float:
        """Share of the answered requests whose document the replica had."""
        return self.hits / max(len(self.latencies), 1)

    @property
    def utilization(self) -> float:
        """Share of the replicas' time that they worked."""
        return self.busy_seconds / max(self.seconds * self.replicas, 1e-9)

    def percentile(self, share: float) -> float:
        """Return the latency that this share of the answered requests did not exceed."""
        return percentile(self.latencies, share)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class _Replica:
    def __init__(self, env: simpy.Environment, cached_documents: int) -> None:
        self.turn = simpy.Resource(env)
        self._capacity = cached_documents
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def kept_documents(self) -> int:
        return len(self._kept)

    def read(self, document: int) -> bool:
        """Note the use of a document; return whether it was kept."""
        is_hit = document in self._kept
        self._kept[document] = None
        self._kept.move_to_end(document)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return is_hit


def simulate(
    trace: Trace,
    service: Service,
    fleet: Fleet,
    *,
    warm_up: Sequence[int] = (),
    placed: Mapping[int, int] | None = None,
    seed: int = 0,
) -> Outcome:
    """Serve a trace.

    Args:
        trace: the requests.
        service: how long they take.
        fleet: what serves them.
        warm_up: documents that were asked about before, so that caches are not empty.
        placed: the replica of each document, as a measured run had them; None: by the ring.
        seed: random seed of the routing and of the service times.
    """
    rng = random.Random(f"simulate/{seed}")
    env = simpy.Environment()
    replicas = [_Replica(env, fleet.cached_documents) for _ in range(fleet.replicas)]
    ring = _Ring(fleet.replicas)
    outcome = Outcome(replicas=fleet.replicas)

    def places(document: int) -> list[_Replica]:
        count = 1 + fleet.fallbacks
        if placed is not None:
            return [replicas[placed[document]]]
        if fleet.affinity:
            return [replicas[index] for index in ring.places(document, count)]
        return rng.sample(replicas, min(count, len(replicas)))

    def serve(number: int, document: int) -> Generator[simpy.Event, None, None]:
        arrived = env.now
        yield env.timeout(service.encoding(number, rng))
        free = (place for place in places(document) if len(place.turn.queue) < fleet.max_queue)
        replica = next(free, None)
        if replica is None:
            outcome.rejected += 1
            return
        with replica.turn.request() as turn:
            yield turn
            is_hit = replica.read(document)
            seconds, overhead = service.draw(number, is_hit, rng)
            yield env.timeout(seconds)
        outcome.hits += is_hit
        outcome.busy_seconds += seconds
        outcome.latencies.append(env.now - arrived + overhead)

    def arrive() -> Generator[simpy.Event, None, None]:
        for number, arrival in enumerate(trace.arrivals):
            yield env.timeout(arrival - env.now)
            env.process(serve(number, trace.documents[number]))

    for document in warm_up:
        places(document)[0].read(document)
    env.process(arrive())
    env.run()
    outcome.seconds = env.now
    outcome.kept_documents = sum(replica.kept_documents for replica in replicas)
    return outcome


class _Ring:
    """Consistent hashing, as Ray Serve's router does it."""

    def __init__(self, replicas: int) -> None:
        places = sorted(
            (_hash(f"{replica}:{node}"), replica)
            for replica in range(replicas)
            for node in range(VIRTUAL_NODES)
        )
        self._hashes = [place for place, _ in places]
        self._replicas = [replica for _, replica in places]
        self._count = replicas
        self._known: dict[int, list[int]] = {}

    def places(self, document: int, count: int) -> list[int]:
        """Return the replicas of a document: the first, and those after it on the ring."""
        if document not in self._known:
            start = bisect.bisect_right(self._hashes, _hash(f"document {document}"))
            found: dict[int, None] = {}
            for step in range(len(self._replicas)):
                found[self._replicas[(start + step) % len(self._replicas)]] = None
                if len(found) == min(count, self._count):
                    break
            self._known[document] = list(found)
        return self._known[document]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
