"""Documents that were read by the base model, kept so that one reading serves many questions."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from refine_server.ttt.query_side.frozen_document import FrozenDocument

Key = tuple[str, str]
"""The owner, and the document's key."""


def document_key(input_ids: Tensor) -> str:
    """Return what tells documents apart: a hash of the prompt up to the document's end [1, T]."""
    return hashlib.sha256(input_ids.cpu().numpy().tobytes()).hexdigest()


@dataclass(slots=True)
class _Entry:
    document: FrozenDocument
    used: float
    """When it was used last, by the cache's clock."""


class DocumentCache:
    """Frozen documents by owner and text, the least recently used dropped first.

    A document is only ever given to the owner who had it read. It stays in memory while a request
    uses it, even if it was dropped here. Any thread may call any method.

    Args:
        budget_bytes: the most bytes of all documents; 0 keeps none.
        ttl_seconds: how long a document is kept after its last use.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        budget_bytes: int,
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget, self._ttl, self._clock = budget_bytes, ttl_seconds, clock
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        """Bytes of the documents that are kept."""

    def get(self, owner: str, input_ids: Tensor) -> FrozenDocument | None:
        """Return the owner's document of these token ids [1, T], or None."""
        key = owner, document_key(input_ids)
        with self._lock:
            self._drop_expired()
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.used = self._clock()
            self._entries.move_to_end(key)
            return entry.document

    def put(self, owner: str, document: FrozenDocument) -> None:
        """Keep a document for its owner, and drop others where the budget requires it."""
        size, key = document.nbytes, (owner, document_key(document.input_ids))
        with self._lock:
            self._drop_expired()
            if size > self._budget or key in self._entries:
                return
            while self.nbytes + size > self._budget:
                self._drop(next(iter(self._entries)))
            self._entries[key] = _Entry(document, self._clock())
            self.nbytes += size

    def forget(self, owner: str, key: str) -> None:
        """Drop the owner's document of this key, if it is kept."""
        with self._lock:
            if (owner, key) in self._entries:
                self._drop((owner, key))

    def drop_expired(self) -> None:
        """Drop what was not used for too long."""
        with self._lock:
            self._drop_expired()

    def _drop_expired(self) -> None:
        before = self._clock() - self._ttl
        while self._entries and (oldest := next(iter(self._entries.items())))[1].used < before:
            self._drop(oldest[0])

    def _drop(self, key: Key) -> None:
        self.nbytes -= self._entries.pop(key).document.nbytes
