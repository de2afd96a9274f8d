"""What clients ask, the right answers, and the adaptations that exist."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

THINGS = ("harbour code", "bakery owner", "castle animal", "market spice", "garden flower")
VALUES = ("amber", "falcon", "saffron", "orchid", "granite", "silver", "juniper", "walnut")
FILLER = "It rained until late. The lamps were lit one by one. Nothing else happened for some time."

SETTINGS = {
    "rollouts": {"positions": 2, "per_position": 2, "tokens": 4},
    "optimizer": {"steps": 2},
    "fast_weights": {"rank": 4},
}
SAMPLING = {"max_tokens": 12}
OWNERS = ("ada", "ben")


@dataclass(frozen=True)
class Subject:
    """One document with one adaptation configuration and one owner."""

    owner: str
    number: int
    document: str
    adapt: dict[str, Any]
    queries: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """How a question about the document itself is asked, as a kept adaptation is."""
        return {"context": "document", "adapt": self.adapt}


def make_subjects(documents: int, seed: int) -> list[Subject]:
    """Make documents of a few facts between filler; every owner has the same ones."""
    rng = random.Random(seed)
    found = []
    for number in range(documents):
        facts = [f"The {thing} is {rng.choice(VALUES)}." for thing in rng.sample(THINGS, 4)]
        text = " ".join(f"{fact} {FILLER}" for fact in facts)
        queries = tuple(f"What is the {thing}?" for thing in THINGS[:3])
        adapt = {**SETTINGS, "seed": number}
        found += [Subject(owner, number, text, adapt, queries) for owner in OWNERS]
    return found


@dataclass
class Kept:
    """An adaptation that should exist. Several clients may use it; deleting needs it alone."""

    subject: Subject
    id: str | None = None
    is_stored: bool = False
    _users: int = 0
    _lock: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep other clients from deleting it in the meantime."""
        with self._lock:
            while self._users < 0:
                self._lock.wait()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._lock.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Keep other clients from using it in the meantime; yield False if one already does."""
        with self._lock:
            is_free = self._users == 0
            if is_free:
                self._users = -1
        try:
            yield is_free
        finally:
            if is_free:
                with self._lock:
                    self._users = 0
                    self._lock.notify_all()


class Tally:
    """Counts events from all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.notes: list[str] = []

    def add(self, what: str, note: str | None = None) -> None:
        """Count an event; a note says what was wrong."""
        with self._lock:
            self.counts[what] += 1
            if note is not None and len(self.notes) < 20:
                self.notes.append(f"{what}: {note}")

    def refuse(self, code: str) -> None:
        """Count a request that the server refused with a time after which to retry."""
        with self._lock:
            self.refused[code] += 1
