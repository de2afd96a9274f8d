"""Clients that ask, stream, disconnect, cancel, delete and send bad requests, and check answers."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from refine_server.benchmarks.robustness.reliability.ledger import SAMPLING, Kept, Subject, Tally
from refine_server.clients import sse

READ_TIMEOUT = httpx.Timeout(120.0)
"""A request that waits longer for a byte counts as lost."""

ALLOWED_REFUSALS = ("memory_in_use",)
"""Codes of a 503 that a healthy server may return, with a Retry-After header."""

BAD_BODIES: tuple[bytes, ...] = (
    b"{",
    b"[" * 10_000,
    b"null",
    b'{"document": "", "query": "x"}',
    b'{"document": "x", "query": "y", "colour": 1}',
    b'{"document": "x", "query": "y", "adapt": {"optimizer": {"steps": -1}}}',
    b'{"document": "x", "query": "y", "seed": ' + b"9" * 6_000 + b"}",
    b'{"document": "x", "query": "y", "model": "../../etc/passwd"}',
    b'{"adaptation": "adapt-00000000000000000000000000000000", "query": "y"}',
    b"\xff\xfe\x00",
)


class RequestLost(Exception):
    """A request got no answer although the server was not killed."""


class Traffic:
    """The actions of one client, in sequence.

    Args:
        url: URL of the server.
        keys: API keys by owner.
        kept: all adaptations that may exist.
        expected: right answers by (subject's number, query).
        tally: counts what happens.
        up: set while the server is expected to run.
        seed: random seed for this client's choices.
    """

    def __init__(
        self,
        url: str,
        keys: dict[str, str],
        kept: list[Kept],
        expected: dict[tuple[int, str], str],
        tally: Tally,
        up: threading.Event,
        seed: int,
    ) -> None:
        self.url, self.keys, self.kept = url, keys, kept
        self.expected, self.tally, self.up = expected, tally, up
        self.rng = random.Random(seed)
        self.http = httpx.Client(timeout=READ_TIMEOUT, trust_env=False)
        self.actions: dict[Callable[[], None], int] = {
            self.answer: 4,
            self.stream: 3,
            self.leave_stream: 2,
            self.leave_early: 1,
            self.send_bad_request: 2,
            self.adapt_and_ask: 8,
            self.delete: 1,
            self.cancel: 1,
            self.ask_other_owner: 1,
        }

    def run(self, is_over: Callable[[], bool]) -> None:
        """Act until ``is_over`` returns True."""
        with self.http:
            while not is_over():
                if not self.up.wait(0.2):
                    continue
                (action,) = self.rng.choices(list(self.actions), list(self.actions.values()))
                try:
                    action()
                except (httpx.TransportError, RequestLost) as error:
                    self._broken(action, error)

    def _broken(self, action: Callable[[], None], error: Exception) -> None:
        if self.up.is_set():
            self.tally.add("lost", f"{action.__name__}: {error!r}")
        else:
            self.tally.add("interrupted")

    # -- actions ------------------------------------------------------------------------------

    def answer(self) -> None:
        """Ask about a document that is sent with the question."""
        subject, query = self._choose()
        reply = self._post("/v1/answers", subject.owner, self._question(subject, query))
        if reply.is_success:
            self._check(subject, query, reply.json()["answer"])

    def stream(self) -> None:
        """Stream an answer; its pieces must add up to the answer, and its last event must come."""
        subject, query = self._choose()
        with self._open_stream(subject, query) as events:
            received = [(event.event, json.loads(event.data)) for event in events]
        if not received:
            return
        name, last = received[-1]
        if name != "answer.completed":
            code = last.get("error", {}).get("code", "none")
            if self.up.is_set() and code != "shutting_down":
                self.tally.add("lost", f"a stream ended with {name} {code}")
            return
        pieces = "".join(data["text"] for name, data in received if name == "answer.delta")
        if pieces != last["answer"]:
            self.tally.add("wrong", f"pieces {pieces!r}, whole {last['answer']!r}")
        self._check(subject, query, last["answer"])

    def leave_stream(self) -> None:
        """Disconnect from a stream after a few events."""
        subject, query = self._choose()
        with self._open_stream(subject, query) as events:
            for _ in zip(range(self.rng.randint(0, 3)), events, strict=False):
                pass
        self.tally.add("hung_up")

    def leave_early(self) -> None:
        """Disconnect before the answer comes."""
        subject, query = self._choose()
        body = self._question(subject, query)
        try:
            self._post("/v1/answers", subject.owner, body, timeout=self.rng.uniform(0.01, 0.2))
        except httpx.TimeoutException:
            self.tally.add("hung_up")

    def send_bad_request(self) -> None:
        """Send bodies that must be refused, and a key that does not exist."""
        content, owner = self.rng.choice(BAD_BODIES), self.rng.choice(list(self.keys))
        headers = {**self._headers(owner), "content-type": "application/json"}
        if self.rng.random() < 0.2:
            headers["authorization"] = "Bearer nobody"
        reply = self._count(
            self.http.post(f"{self.url}/v1/answers", content=content, headers=headers)
        )
        if not 400 <= reply.status_code < 500 and reply.status_code != 503:
            self.tally.add("wrong", f"{reply.status_code} for {content[:60]!r}")

    def adapt_and_ask(self) -> None:
        """Create an adaptation, or use an existing one, and ask it."""
        kept = self.rng.choice(self.kept)
        with kept.shared():
            if kept.id is None and not self._create(kept):
                return
            for _ in range(self.rng.randint(1, 3)):
                query = self.rng.choice(kept.subject.queries)
                body = {"adaptation": kept.id, "query": query, **SAMPLING}
                reply = self._post("/v1/answers", kept.subject.owner, body)
                if reply.is_success:
                    self._check(kept.subject, query, reply.json()["answer"])
                elif reply.status_code in (404, 409):
                    self.tally.add("lost", f"{kept.id}: {reply.text[:200]}")
                    kept.id = None
                    return

    def delete(self) -> None:
        """Delete an adaptation and check that it is gone."""
        kept = self.rng.choice(self.kept)
        with kept.exclusive() as is_free:
            if not is_free or kept.id is None:
                return
            gone, kept.id, kept.is_stored = kept.id, None, False
            self._delete(kept.subject.owner, gone)

    def cancel(self) -> None:
        """Start a long adaptation and delete it while it runs."""
        subject, _ = self._choose()
        adapt = {**subject.adapt, "optimizer": {"steps": 200}, "seed": self.rng.randrange(2**40)}
        body = {"document": subject.document, "adapt": adapt}
        reply = self._post("/v1/adaptations", subject.owner, body)
        if reply.is_success:
            threading.Event().wait(self.rng.uniform(0.0, 0.3))
            self._delete(subject.owner, reply.json()["id"])
            self.tally.add("cancelled")

    def ask_other_owner(self) -> None:
        """Ask another owner's adaptation, which must not be found."""
        kept = self.rng.choice(self.kept)
        others = [owner for owner in self.keys if owner != kept.subject.owner]
        with kept.shared():
            if kept.id is None or not others:
                return
            body = {"adaptation": kept.id, "query": "What is the harbour code?", **SAMPLING}
            reply = self._post("/v1/answers", self.rng.choice(others), body)
            if reply.status_code not in (404, 429):
                self.tally.add("leaked", f"{reply.status_code} {reply.text[:200]}")

    # -- requests -----------------------------------------------------------------------------

    def _create(self, kept: Kept) -> bool:
        subject = kept.subject
        body = {"document": subject.document, "adapt": subject.adapt}
        reply = self._post("/v1/adaptations", subject.owner, body)
        if not reply.is_success:
            return False
        created = reply.json()["id"]
        headers = self._headers(subject.owner)
        with self.http.stream(
            "GET", f"{self.url}/v1/adaptations/{created}/events", headers=headers
        ) as events:
            received = list(sse.parse(events.iter_bytes()))
        if not received or received[-1].event != "adaptation.ready":
            raise RequestLost(f"{created} ended with {received[-1:]}")
        kept.id, kept.is_stored = created, json.loads(received[-1].data)["stored"]
        self.tally.add("adapted")
        return True

    def _delete(self, owner: str, adaptation_id: str) -> None:
        address = f"{self.url}/v1/adaptations/{adaptation_id}"
        headers = self._headers(owner)
        deleted = self._count(self.http.delete(address, headers=headers))
        found = self._count(self.http.get(address, headers=headers))
        if (deleted.status_code, found.status_code) != (200, 404):
            codes = f"{deleted.status_code}, then {found.status_code}"
            self.tally.add("wrong", f"deleting {adaptation_id}: {codes}")

    def _choose(self) -> tuple[Subject, str]:
        subject = self.rng.choice(self.kept).subject
        return subject, self.rng.choice(subject.queries)

    def _question(self, subject: Subject, query: str) -> dict[str, Any]:
        return {"document": subject.document, "query": query, **subject.settings, **SAMPLING}

    def _headers(self, owner: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[owner]}"}

    def _post(
        self, path: str, owner: str, body: dict[str, Any], timeout: float | None = None
    ) -> httpx.Response:
        limit = READ_TIMEOUT if timeout is None else httpx.Timeout(timeout)
        headers = self._headers(owner)
        return self._count(
            self.http.post(f"{self.url}{path}", json=body, headers=headers, timeout=limit)
        )

    @contextmanager
    def _open_stream(self, subject: Subject, query: str) -> Iterator[Iterator[sse.ServerSentEvent]]:
        body = {**self._question(subject, query), "stream": True}
        headers = self._headers(subject.owner)
        address = f"{self.url}/v1/answers"
        with self.http.stream("POST", address, json=body, headers=headers) as reply:
            if not reply.is_success:
                reply.read()
            self._count(reply)
            yield sse.parse(reply.iter_bytes()) if reply.is_success else iter(())

    def _count(self, reply: httpx.Response) -> httpx.Response:
        self.tally.add("requests")
        status = reply.status_code
        code = reply.json()["error"]["code"] if status in (429, 503) else ""
        waits = int(reply.headers.get("retry-after", 0)) >= 1
        if waits and (status == 429 or code in ALLOWED_REFUSALS or not self.up.is_set()):
            self.tally.refuse(code)
        elif status >= 500 or status == 429:
            self.tally.add("errors_5xx", f"{status} {reply.text[:200]}")
        return reply

    def _check(self, subject: Subject, query: str, answer: str) -> None:
        self.tally.add("checked")
        expected = self.expected[subject.number, query]
        if answer != expected:
            self.tally.add("wrong", f"{answer!r} instead of {expected!r} to {query!r}")
