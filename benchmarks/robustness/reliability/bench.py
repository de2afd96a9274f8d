"""Soak test, kills and faults in sequence, each on a server of its own."""

import logging
import random
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from refine_server.benchmarks.robustness.reliability.ledger import (
    OWNERS,
    SAMPLING,
    Kept,
    Tally,
    make_subjects,
)
from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.benchmarks.robustness.reliability.store import damaged_entries
from refine_server.benchmarks.robustness.reliability.traffic import Traffic

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
WARM_UP = 0.3
"""Share of the soak test before memory is measured: until then caches and allocators fill."""
SETTLE_SECONDS = 30.0


class ReliabilityBench:
    """Sends mixed traffic to one server process and compares every answer with a precomputed one.

    Args:
        model: name of the model to serve.
        documents: number of different documents in the traffic.
        clients: number of concurrent clients.
        seed: random seed for the documents and the traffic.
        folder: folder for stores and logs.
    """

    def __init__(self, model: str, documents: int, clients: int, seed: int, folder: Path) -> None:
        self.clients, self.seed, self.folder = clients, seed, folder
        self.rng = random.Random(seed)
        self.keys = {owner: f"bench-{secrets.token_hex(16)}" for owner in OWNERS}
        self.subjects = make_subjects(documents, seed)
        self.tally = Tally()
        self.options: dict[str, object] = {
            "model": model,
            "max_active": 2,
            "max_queue": max(clients - 3, 0),  # so that it is full at times
            "shutdown_seconds": 20.0,
        }
        self.expected: dict[tuple[int, str], str] = {}

    def run(self, minutes: float, kills: int) -> dict[str, Any]:
        """Run all parts and return the result that is printed."""
        logger.info("asking for the right answers")
        self.prepare()
        logger.info("soak of %g minutes, %d clients", minutes, self.clients)
        soak = self.soak(minutes * 60.0)
        logger.info("%d kills", kills)
        killed = self.kill_often(kills)
        counts = self.tally.counts
        return {
            "requests": counts["requests"],
            "checked_answers": counts["checked"],
            "wrong": counts["wrong"],
            "lost": counts["lost"],
            "leaked": counts["leaked"],
            "errors_5xx": counts["errors_5xx"],
            "kills": killed["kills"],
            "store_corruptions": soak["store_corruptions"] + killed["store_corruptions"],
            "rss_growth": soak["rss_growth"],
            "rss_bytes": soak["rss_bytes"],
            "stuck": soak["stuck"],
            "exit_status": soak["exit_status"],
            "seconds": soak["seconds"],
            "restart_seconds": killed["restart_seconds"],
            "evictions": soak["evictions"],
            "adapted": counts["adapted"],
            "cancelled": counts["cancelled"],
            "hung_up": counts["hung_up"],
            "interrupted": counts["interrupted"],
            "refused": dict(self.tally.refused),
            "notes": self.tally.notes,
        }

    def server(
        self, name: str, environment: dict[str, str] | None = None, **options: object
    ) -> ServerProcess:
        """Make a server process with the bench's keys; its log is ``<name>.log``."""
        pairs = ",".join(f"{owner}:{key}" for owner, key in self.keys.items())
        variables = {"REFINE_API_KEYS": pairs, "OMP_WAIT_POLICY": "passive", **(environment or {})}
        return ServerProcess({**self.options, **options}, variables, self.folder / f"{name}.log")

    def prepare(self) -> None:
        """Get the right answers from an idle server, one by one."""
        server = self.server("prepare", store="none")
        server.start()
        try:
            for subject in self.subjects:
                for query in subject.queries:
                    if (subject.number, query) not in self.expected:
                        body = {"document": subject.document, "query": query, **SAMPLING}
                        reply = self.ask(server, subject.owner, body | subject.settings)
                        self.expected[subject.number, query] = reply["answer"]
        finally:
            server.stop()

    def ask(self, server: ServerProcess, owner: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return one answer; raise an error if there is none."""
        reply = self.post(server, owner, "/v1/answers", body).raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer

    def post(
        self, server: ServerProcess, owner: str, path: str, body: dict[str, Any]
    ) -> httpx.Response:
        """Send one POST request under an owner's key."""
        url = f"{server.url}{path}"
        return httpx.post(url, json=body, headers=self.headers(owner), timeout=120, trust_env=False)

    def get(self, server: ServerProcess, owner: str, path: str) -> httpx.Response:
        """Send one GET request under an owner's key."""
        url = f"{server.url}{path}"
        return httpx.get(url, headers=self.headers(owner), timeout=120, trust_env=False)

    def headers(self, owner: str) -> dict[str, str]:
        """Return the headers with an owner's key."""
        return {"authorization": f"Bearer {self.keys[owner]}"}

    def adapt(self, server: ServerProcess, kept: Kept) -> dict[str, Any]:
        """Adapt to a subject's document and wait until it is ready."""
        subject = kept.subject
        body = {"document": subject.document, "adapt": subject.adapt}
        created = self.post(server, subject.owner, "/v1/adaptations", body).raise_for_status()
        path = f"/v1/adaptations/{created.json()['id']}"
        self.get(server, subject.owner, f"{path}/events")  # ends with the adaptation
        resource: dict[str, Any] = self.get(server, subject.owner, path).raise_for_status().json()
        kept.id, kept.is_stored = resource["id"], resource["stored"]
        return resource

    # -- soak test ----------------------------------------------------------------------------

    def soak(self, seconds: float) -> dict[str, Any]:
        """Run one process under traffic: measure memory, stuck requests and its exit status."""
        store = self.folder / "soak"
        server = self.server("soak", store=store.as_uri())
        server.start()
        kept, up = [Kept(subject) for subject in self.subjects], threading.Event()
        up.set()
        samples: list[float] = []
        began = time.monotonic()
        with self.traffic(server, kept, up):
            while time.monotonic() - began < seconds:
                time.sleep(SAMPLE_SECONDS)
                samples.append(self.metrics(server)["process_resident_memory_bytes"])
        elapsed = time.monotonic() - began
        stuck = self.stuck(server)
        evictions = self.metrics(server).get("refine_adaptation_cache_evictions_total", 0.0)
        status = server.stop()
        warm = samples[int(len(samples) * WARM_UP) :]
        part = max(len(warm) // 4, 1)
        first, last = statistics.median(warm[:part]), statistics.median(warm[-part:])
        damaged = damaged_entries(store)
        for entry in damaged:
            self.tally.add("store_corruptions", entry)
        return {
            "seconds": round(elapsed, 1),
            "rss_growth": round(last / first - 1.0, 4),
            "rss_bytes": int(last),
            "stuck": stuck,
            "evictions": int(evictions),
            "exit_status": status,
            "store_corruptions": len(damaged),
        }

    def metrics(self, server: ServerProcess) -> dict[str, float]:
        """Return the server's metrics."""
        return server.metrics(self.headers(OWNERS[0]))

    def stuck(self, server: ServerProcess) -> int:
        """Count requests and adaptations that have not ended although all clients have left."""
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            shown = self.metrics(server)
            unfinished = [f'refine_adaptations{{status="{s}"}}' for s in ("queued", "adapting")]
            stuck = shown["refine_queue_depth"] + sum(shown.get(name, 0.0) for name in unfinished)
            if stuck == 0 or time.monotonic() > end:
                return int(stuck)
            time.sleep(SAMPLE_SECONDS)

    @contextmanager
    def traffic(
        self, server: ServerProcess, kept: list[Kept], up: threading.Event
    ) -> Iterator[None]:
        """Run all clients until the block ends and each has finished its current action."""
        over = threading.Event()
        threads = []
        for number in range(self.clients):
            arguments = (server.url, self.keys, kept, self.expected, self.tally, up)
            client = Traffic(*arguments, seed=self.seed * 1000 + number)
            threads.append(threading.Thread(target=self._guarded, args=(client, over.is_set)))
            threads[-1].start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _guarded(self, client: Traffic, is_over: Callable[[], bool]) -> None:
        try:
            client.run(is_over)
        except Exception as error:
            logger.exception("a client stopped")
            self.tally.add("lost", f"a client stopped: {error!r}")

    # -- kills --------------------------------------------------------------------------------

    def kill_often(self, kills: int) -> dict[str, Any]:
        """Kill the server at random moments under traffic; check what is left after each."""
        store = self.folder / "kills"
        server = self.server("kills", store=store.as_uri())
        server.start()
        kept, up = [Kept(subject) for subject in self.subjects], threading.Event()
        up.set()
        damaged: set[str] = set()
        restarts: list[float] = []
        with self.traffic(server, kept, up):
            for _ in range(kills):
                time.sleep(self.rng.uniform(1.0, 6.0))
                up.clear()
                server.kill()
                damaged |= set(damaged_entries(store))
                restarts.append(server.start())
                self.look(server, kept)
                up.set()
        server.stop()
        damaged |= set(damaged_entries(store))
        for entry in damaged:
            self.tally.add("store_corruptions", entry)
        return {
            "kills": kills,
            "store_corruptions": len(damaged),
            "restart_seconds": round(statistics.median(restarts), 2) if restarts else None,
        }

    def look(self, server: ServerProcess, kept: list[Kept]) -> None:
        """Check after a restart that stored adaptations are there and answer as before."""
        for one in kept:
            if one.id is None or not one.is_stored:
                one.id = None
                continue
            subject = one.subject
            query = self.rng.choice(subject.queries)
            body = {"adaptation": one.id, "query": query, **SAMPLING}
            reply = self.post(server, subject.owner, "/v1/answers", body)
            self.tally.add("requests")
            if not reply.is_success:
                self.tally.add(
                    "lost", f"{one.id} after a kill: {reply.status_code} {reply.text[:200]}"
                )
                one.id = None
                continue
            self.tally.add("checked")
            answer = reply.json()["answer"]
            if answer != self.expected[subject.number, query]:
                self.tally.add("wrong", f"{one.id} after a kill: {answer!r}")


@contextmanager
def bench_folder() -> Iterator[Path]:
    """Make a temporary folder for one run."""
    with tempfile.TemporaryDirectory(prefix="refine-reliability-") as folder:
        yield Path(folder)
