"""Soak, kills and faults, one after the other, each with a server of its own."""

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

from refine_server.benchmarks.reliability.ledger import OWNERS, SAMPLING, Kept, Tally, make_subjects
from refine_server.benchmarks.reliability.process import ServerProcess
from refine_server.benchmarks.reliability.store import damaged_entries
from refine_server.benchmarks.reliability.traffic import Traffic

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
WARM_UP = 0.3
"""Share of the soak after which memory counts: caches and allocators have filled by then."""
SETTLE_SECONDS = 30.0


class ReliabilityBench:
    """Mixed traffic against one server process, every answer compared with its precomputed one.

    Args:
        model: what to serve.
        documents: how many different ones are asked about.
        clients: how many act at the same time.
        seed: of everything that is random here.
        folder: for stores and logs.
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
            "max_queue": max(clients - 3, 0),  # so that it is full now and then
            "shutdown_seconds": 20.0,
        }
        self.expected: dict[tuple[int, str], str] = {}

    def run(self, minutes: float, kills: int) -> dict[str, Any]:
        """All of it; the result that is printed."""
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
        """A process with the bench's keys; its log is ``<name>.log``."""
        pairs = ",".join(f"{owner}:{key}" for owner, key in self.keys.items())
        variables = {"REFINE_API_KEYS": pairs, "OMP_WAIT_POLICY": "passive", **(environment or {})}
        return ServerProcess({**self.options, **options}, variables, self.folder / f"{name}.log")

    def prepare(self) -> None:
        """The right answers, asked one at a time of a quiet server; the bytes of an adaptation."""
        server = self.server("prepare", store="none")
        server.start()
        try:
            for subject in self.subjects:
                for query in subject.queries:
                    if (subject.number, query) not in self.expected:
                        body = {"document": subject.document, "query": query, **SAMPLING}
                        reply = self.ask(server, subject.owner, {**body, "adapt": subject.adapt})
                        self.expected[subject.number, query] = reply["answer"]
            nbytes = self.adaptation_bytes(server)
        finally:
            server.stop()
        # As many as clients can use at once: the others have to go and come back.
        self.options["adaptation_memory_bytes"] = nbytes * (self.clients + 1)

    def ask(self, server: ServerProcess, owner: str, body: dict[str, Any]) -> dict[str, Any]:
        """One answer; raises when there is none."""
        reply = self.post(server, owner, "/v1/answers", body).raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer

    def post(
        self, server: ServerProcess, owner: str, path: str, body: dict[str, Any]
    ) -> httpx.Response:
        """One request under an owner's key."""
        url = f"{server.url}{path}"
        return httpx.post(url, json=body, headers=self.headers(owner), timeout=120, trust_env=False)

    def get(self, server: ServerProcess, owner: str, path: str) -> httpx.Response:
        """One reading under an owner's key."""
        url = f"{server.url}{path}"
        return httpx.get(url, headers=self.headers(owner), timeout=120, trust_env=False)

    def headers(self, owner: str) -> dict[str, str]:
        """What carries an owner's key."""
        return {"authorization": f"Bearer {self.keys[owner]}"}

    def adapt(self, server: ServerProcess, kept: Kept) -> dict[str, Any]:
        """An adaptation of a subject, ready."""
        subject = kept.subject
        body = {"document": subject.document, "adapt": subject.adapt}
        created = self.post(server, subject.owner, "/v1/adaptations", body).raise_for_status()
        path = f"/v1/adaptations/{created.json()['id']}"
        self.get(server, subject.owner, f"{path}/events")  # ends when it does
        resource: dict[str, Any] = self.get(server, subject.owner, path).raise_for_status().json()
        kept.id, kept.is_stored = resource["id"], resource["stored"]
        return resource

    def adaptation_bytes(self, server: ServerProcess) -> int:
        """Memory of the largest adaptation."""
        first = [Kept(subject) for subject in self.subjects if subject.owner == OWNERS[0]]
        return max(int(self.adapt(server, kept)["bytes"]) for kept in first)

    # -- soak ---------------------------------------------------------------------------------

    def soak(self, seconds: float) -> dict[str, Any]:
        """One process under traffic for so long: its memory, what is stuck at its end, its end."""
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
        """The server's metrics."""
        return server.metrics(self.headers(OWNERS[0]))

    def stuck(self, server: ServerProcess) -> int:
        """Requests and adaptations that have not ended although nobody asks any more."""
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
        """All clients at work, until the block ends and each has ended what it does."""
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
        """Kill -9 at random moments under traffic, each time with a look at what is left."""
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
        """After a restart: what was stored is there and answers as before."""
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
    """A folder for one run, which is removed."""
    with tempfile.TemporaryDirectory(prefix="refine-reliability-") as folder:
        yield Path(folder)
