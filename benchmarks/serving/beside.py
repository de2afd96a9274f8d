"""Short chats alone, and beside answers about long documents: how long does nobody's work wait?"""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from refine_server.benchmarks.common.failures import RunFailedError
from refine_server.benchmarks.serving.workload import Request

CHAT = "Say hello to the harbour master."
"""Eight tokens or so."""
CHAT_TOKENS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Chats:
    """What the clients of some chats saw."""

    first_token_seconds: list[float]
    tokens_per_second: list[float]
    """Of each chat, from its first token to its last."""

    def figures(self) -> dict[str, float]:
        """Return percentiles and medians for JSON."""
        return {
            "first_token_p50": round(statistics.median(self.first_token_seconds), 3),
            "first_token_p95": round(_percentile(self.first_token_seconds, 0.95), 3),
            "tokens_per_second": round(statistics.median(self.tokens_per_second), 2),
        }


def run(
    url: str, documents: Sequence[Request], chats: int, fields: dict[str, Any]
) -> dict[str, Any]:
    """Measure chats alone, then while answers about the documents are made one after another.

    Args:
        url: of the server.
        documents: of the other client; each is asked about once, from the first again after the
            last, until the chats have ended.
        chats: their number on each side.
        fields: more fields of the requests about the documents.

    Raises:
        RunFailedError: a request failed.
    """
    with httpx.Client(base_url=url, timeout=600) as client:
        _chat(client)  # what is made once is not measured
        alone = _chats(client, chats)
        with _answers(url, documents, fields) as seconds:
            beside = _chats(client, chats)
    return {
        "chats": chats,
        "alone": alone.figures(),
        "beside": beside.figures(),
        "extra_first_token_p95": round(
            _percentile(beside.first_token_seconds, 0.95)
            - _percentile(alone.first_token_seconds, 0.95),
            3,
        ),
        "answers": len(seconds),
    }


@contextmanager
def _answers(
    url: str, documents: Sequence[Request], fields: dict[str, Any]
) -> Iterator[list[float]]:
    """Ask about documents in a thread of its own; yield the list of the seconds that each took."""
    seconds: list[float] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=600) as client:
            number = 0
            while not stop.is_set():
                request = documents[number % len(documents)]
                # Another end makes it another text, which no cache has.
                body = {"document": f"{request.document}\n{number}", "query": request.query}
                began = time.perf_counter()
                try:
                    response = client.post("/v1/answers", json={**body, "max_tokens": 8, **fields})
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                    return
                if response.is_error:
                    failures.append(f"{response.status_code} {response.text}")
                    return
                seconds.append(time.perf_counter() - began)
                number += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
    if failures:
        raise RunFailedError(f"a request about a document failed: {failures[0]}")


def _chats(client: httpx.Client, count: int) -> Chats:
    measured = [_chat(client) for _ in range(count)]
    return Chats(
        first_token_seconds=[first for first, _ in measured],
        tokens_per_second=[speed for _, speed in measured],
    )


def _chat(client: httpx.Client) -> tuple[float, float]:
    """Stream one chat; return the seconds to its first token, and its tokens per second."""
    body = {
        "messages": [{"role": "user", "content": CHAT}],
        "max_tokens": CHAT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    times: list[float] = []
    began = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            text = response.read().decode()
            raise RunFailedError(f"a chat failed: {response.status_code} {text}")
        for line in response.iter_lines():
            if line.startswith("data: {") and '"content":' in line:
                times.append(time.perf_counter())
    if len(times) < 2:
        raise RunFailedError("a chat had no tokens")
    return times[0] - began, (len(times) - 1) / max(times[-1] - times[0], 1e-9)


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
