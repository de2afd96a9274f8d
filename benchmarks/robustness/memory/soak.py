"""Soak test of memory: the resident size of a server under requests of mixed lengths and kinds.

Each request is first sent alone to a server that serves nothing else; every later answer to it must
be the same. Then the requests are sent again and again, two at a time, to a new server, whose
resident size is measured when it is idle after each pair.
"""

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from refine_server.benchmarks.common.tokens import ServerTokenizer
from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.benchmarks.serving.workload import Mix
from refine_server.clients import RefineClient

WARM_UP = 10
"""Requests after which the resident size is compared: until then, caches fill."""
SETTLE_SECONDS = 1.5
"""Pause before the resident size is measured, in which an idle server returns freed memory."""
SAMPLE_SECONDS = 0.1
ANSWER_TOKENS = 12
STEPS = {"optimizer": {"steps": 2}, "rollouts": {"positions": 4, "tokens": 4}, "guard": "none"}
"""A cheap adaptation to a whole document."""
EVIDENCE = {"optimizer": {"steps": 2, "learning_rate": 3e-4}, "on": {"kind": "evidence"}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request about one document."""

    tokens: int
    """Length of the document."""
    on_evidence: bool
    """Whether queries adapt to the evidence, instead of weights to the whole document."""
    is_kept: bool
    """Whether the adaptation is created first, asked then, and deleted at the end."""
    document: str = ""
    query: str = ""

    @property
    def label(self) -> str:
        """Kind and length, for the result."""
        kept = "kept" if self.is_kept else "answer"
        return f"{kept} {'evidence' if self.on_evidence else 'document'} {self.tokens}"

    @property
    def adapt(self) -> dict[str, Any]:
        """Settings of the adaptation."""
        return EVIDENCE if self.on_evidence else STEPS


CASES = (
    Case(tokens=500, on_evidence=True, is_kept=False),
    Case(tokens=1500, on_evidence=True, is_kept=False),
    Case(tokens=4000, on_evidence=True, is_kept=False),
    Case(tokens=800, on_evidence=True, is_kept=True),
    Case(tokens=2400, on_evidence=True, is_kept=True),
    Case(tokens=400, on_evidence=False, is_kept=False),
    Case(tokens=1000, on_evidence=False, is_kept=False),
    Case(tokens=2000, on_evidence=False, is_kept=False),
    Case(tokens=700, on_evidence=False, is_kept=True),
    Case(tokens=3500, on_evidence=False, is_kept=True),
)
"""As many as the warm-up takes, so that each was sent once when the resident size is compared."""


def run(model: str, requests: int, seed: int, options: dict[str, object]) -> dict[str, Any]:
    """Run the soak test.

    Args:
        model: name of the model to serve.
        requests: number of requests, in multiples of the cases.
        seed: random seed of the documents and of the order.
        options: further options of the server.
    """
    with tempfile.TemporaryDirectory(prefix="refine-soak-") as folder:
        alone, cases = _alone(model, seed, options, Path(folder))
        server = _server(model, options, Path(folder), "soak")
        server.start()
        try:
            return {"model": model, "seed": seed, **_soak(server, cases, alone, requests, seed)}
        finally:
            server.stop()


def _server(model: str, options: dict[str, object], folder: Path, name: str) -> ServerProcess:
    store = (folder / name).as_uri()
    settings = {"model": model, "store": store, "request_timeout_seconds": 3600, **options}
    return ServerProcess(settings, {}, folder / f"{name}.log")


def _alone(
    model: str, seed: int, options: dict[str, object], folder: Path
) -> tuple[dict[str, str], list[Case]]:
    """Return the answer to each case that is sent alone, and the cases with their documents."""
    server = _server(model, options, folder, "alone")
    server.start()
    try:
        cases = _with_documents(server.url, seed)
        with httpx.Client(base_url=server.url, timeout=3600, trust_env=False) as client:
            return {case.label: _send(client, case) for case in cases}, cases
    finally:
        server.stop()


def _with_documents(url: str, seed: int) -> list[Case]:
    with RefineClient(url) as client:
        tokenizer = ServerTokenizer(client)
        made = [Mix({case.tokens: 1.0}, 0.0, seed).requests(1, tokenizer)[0] for case in CASES]
    return [
        replace(case, document=own.document, query=own.query)
        for case, own in zip(CASES, made, strict=True)
    ]


def _send(client: httpx.Client, case: Case) -> str:
    """Send a case and return the answer.

    Raises:
        httpx.HTTPStatusError: the server refused it.
    """
    question = {"query": case.query, "max_tokens": ANSWER_TOKENS}
    if not case.is_kept:
        context = {"context": "document", "document": case.document, "adapt": case.adapt}
        return _answer(client, question | context)
    body: dict[str, Any] = {"document": case.document, "adapt": case.adapt}
    if case.on_evidence:
        body["queries"] = [case.query]
    made = client.post("/v1/adaptations", json=body).raise_for_status().json()
    client.get(f"/v1/adaptations/{made['id']}/events").raise_for_status()
    answers = {
        _answer(client, question | {"adaptation": made["id"], "context": "document"})
        for _ in range(2)
    }
    client.delete(f"/v1/adaptations/{made['id']}").raise_for_status()
    return " | ".join(sorted(answers))  # one, unless the second differs


def _answer(client: httpx.Client, body: dict[str, Any]) -> str:
    answer: str = client.post("/v1/answers", json=body).raise_for_status().json()["answer"]
    return answer


def _soak(
    server: ServerProcess, cases: Sequence[Case], alone: dict[str, str], requests: int, seed: int
) -> dict[str, Any]:
    rng = random.Random(f"soak/{seed}")
    wrong: list[str] = []
    sizes: list[int] = []
    process = psutil.Process(server.pid)
    began = time.monotonic()
    with (
        _watched(process) as peaks,
        httpx.Client(base_url=server.url, timeout=3600, trust_env=False) as client,
        ThreadPoolExecutor(2) as clients,
    ):
        order: list[Case] = []
        while len(order) < requests:
            order += rng.sample(cases, len(cases))
        order = order[:requests]
        for first in range(0, requests, 2):
            pair = order[first : first + 2]
            for case, answer in zip(
                pair, clients.map(lambda c: _send(client, c), pair), strict=True
            ):
                if answer != alone[case.label]:
                    wrong.append(f"{case.label}: {answer!r}, alone {alone[case.label]!r}")
            time.sleep(SETTLE_SECONDS)
            sizes.append(process.memory_info().rss)
    warm = sizes[WARM_UP // 2 - 1 :]
    middle = statistics.median(warm)
    return {
        "requests": requests,
        "wrong": len(wrong),
        "wrong_answers": wrong,
        "seconds": round(time.monotonic() - began, 1),
        "resident_first": sizes[0],
        "resident_warm": warm[0],
        "resident_lowest": min(warm),
        "resident_highest": max(warm),
        "resident_last": sizes[-1],
        "spread": round(max(max(warm) / middle - 1.0, 1.0 - min(warm) / middle), 4),
        "peak": max(peaks),
        "sizes": sizes,
    }


@contextmanager
def _watched(process: psutil.Process) -> Iterator[list[int]]:
    """Yield a list to which a process's resident size is appended, in bytes, all the time."""
    sizes, is_over = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            sizes.append(process.memory_info().rss)

    thread = threading.Thread(target=watch, name="watch-memory", daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        is_over.set()
        thread.join()
