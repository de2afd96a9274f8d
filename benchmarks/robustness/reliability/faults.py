"""Faults that a server must survive: a full disk, a lost store, a clock that jumps."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from refine_server.benchmarks.robustness.reliability.bench import ReliabilityBench
from refine_server.benchmarks.robustness.reliability.ledger import SAMPLING, Kept
from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.benchmarks.robustness.reliability.store import damaged_entries, entries

DAY = 86_400
CLOCK_HOOK = """
import time
real = time.time
time.time = lambda: real() + float(open({clock!r}).read() or 0)
"""


class Skipped(Exception):
    """The fault cannot be injected on this machine; the message says why."""


class Failed(Exception):
    """The server did not behave as required; the message says how."""


class Faults:
    """Injects each fault into a server of its own with a store of its own.

    Args:
        bench: a prepared bench, which knows the right answers.
    """

    def __init__(self, bench: ReliabilityBench) -> None:
        self.bench = bench

    def run(self) -> dict[str, str]:
        """Return ``passed``, ``skipped: why`` or ``failed: what`` by the name of the fault."""
        faults = (self.disk_full, self.store_unusable, self.store_lost, self.clock_jumps)
        return {fault.__name__: _outcome(fault) for fault in faults}

    def disk_full(self) -> None:
        """Full disk: adaptations that do not fit stay in memory; stored ones are intact."""
        folder = self.bench.folder / "full"
        with _small_disk(folder, "600k"), self._served("full", folder) as server:
            kept = [Kept(subject) for subject in self.bench.subjects]
            stored = [self.bench.adapt(server, one)["stored"] for one in kept]
            _require(not all(stored), "the disk never became full")
            self._check(server, kept[-2:])
            _require(not damaged_entries(folder), f"damaged: {damaged_entries(folder)}")
            there = {one.id for one in kept if one.is_stored}
            _require(there <= entries(folder), "an entry that was called stored is not there")
            server.kill()
            server.start()
            self._check(server, [one for one in kept if one.is_stored])

    def store_unusable(self) -> None:
        """A store that cannot be written at the start: the server ends and says what to change."""
        blocked = self.bench.folder / "blocked"
        blocked.write_text("no folder")
        options = ("--port", "0", "--model", "tiny", "--store", (blocked / "store").as_uri())
        command = [sys.executable, "-P", "-m", "refine_server.server.cli.main", "serve", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        _require(ended.returncode == 2, f"it ended with status {ended.returncode}")
        _require("--store (REFINE_STORE)" in ended.stderr, "it did not name the option")

    def store_lost(self) -> None:
        """A lost store that comes back: adaptations in memory answer, and then all of them do."""
        folder, away = self.bench.folder / "lost", self.bench.folder / "away"
        with self._served("lost", folder) as server:
            before, after, later = (Kept(subject) for subject in self.bench.subjects[:3])
            _require(self.bench.adapt(server, before)["stored"], "it was not stored")
            folder.rename(away)
            folder.write_text("no folder")
            _require(not self.bench.adapt(server, after)["stored"], "it was called stored")
            self._check(server, [before, after])
            folder.unlink()
            away.rename(folder)
            _require(self.bench.adapt(server, later)["stored"], "it was not stored afterwards")
            server.kill()
            server.start()
            self._check(server, [before, later])

    def clock_jumps(self) -> None:
        """The wall clock jumps 40 days ahead, then 80 back: nothing expires early.

        The server's Python gets a ``time.time`` that adds an offset, because libfaketime makes
        torch too slow to start.
        """
        clock, hook = self.bench.folder / "clock", self.bench.folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(CLOCK_HOOK.format(clock=str(clock)))
        clock.write_text("0")
        paths = [str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]
        faked = {"PYTHONPATH": os.pathsep.join(paths)}
        with self._served("clock", self.bench.folder / "clocked", faked) as server:
            kept = [Kept(subject) for subject in self.bench.subjects[:2]]
            created = [self.bench.adapt(server, one)["created_at"] for one in kept]
            for jump in (40 * DAY, -40 * DAY):
                clock.write_text(str(jump))
                fresh = Kept(self.bench.subjects[2 if jump > 0 else 3])
                apart = self.bench.adapt(server, fresh)["created_at"] - created[0]
                _require(abs(apart - jump) < DAY, "the clock did not jump")
                time.sleep(6.0)  # longer than the interval between two sweeps for expired ones
                self._check(server, [*kept, fresh])
            server.kill()
            server.start()  # in the past: stored adaptations have not expired
            self._check(server, kept)

    @contextmanager
    def _served(
        self, name: str, store: Path, environment: dict[str, str] | None = None
    ) -> Iterator[ServerProcess]:
        server = self.bench.server(name, environment, store=store.as_uri())
        server.start()
        try:
            yield server
        finally:
            status = server.stop()
        _require(status == 0, f"it ended with {status}")

    def _check(self, server: ServerProcess, kept: list[Kept]) -> None:
        for one in kept:
            for query in one.subject.queries:
                body = {"adaptation": one.id, "query": query, **SAMPLING}
                reply = self.bench.post(server, one.subject.owner, "/v1/answers", body)
                _require(reply.is_success, f"{reply.status_code} {reply.text[:200]}")
                expected = self.bench.expected[one.subject.number, query]
                _require(reply.json()["answer"] == expected, f"wrong: {reply.json()['answer']!r}")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


def _outcome(fault: Callable[[], None]) -> str:
    try:
        fault()
    except Skipped as reason:
        return f"skipped: {reason}"
    except Exception as error:
        return f"failed: {error!r}"
    return "passed"


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise Skipped("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "refine-small", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        raise Skipped(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
