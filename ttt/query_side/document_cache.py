"""States of documents that were read, kept so that one reading serves many questions."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine_server.ttt.document_adaptation import ReadEnd
from refine_server.ttt.models.state import cast_floats
from refine_server.ttt.query_side.frozen_document import FrozenDocument

Key = tuple[str, str]
"""The owner, and the document's key."""
Document = FrozenDocument | ReadEnd
"""A document as the base model reads it, or where its reading under adapted weights ended."""


def document_key(input_ids: Tensor) -> str:
    """Return what tells documents apart: a hash of the prompt up to the document's end [1, T]."""
    return hashlib.sha256(input_ids.cpu().numpy().tobytes()).hexdigest()


@dataclass(slots=True)
class _Entry:
    document: Document
    dtype: torch.dtype
    """Of the document's state as it was read."""
    used: float
    """When it was used last, by the cache's clock."""


class DocumentCache:
    """States of documents by owner and text, the least recently used dropped first.

    A document is only ever given to the owner who had it read. It stays in memory while a request
    uses it, even if it was dropped here. Any thread may call any method.

    Args:
        room: returns the most bytes that the documents may take now.
        ttl_seconds: how long a document is kept after its last use.
        clock: seconds that only rise.
        dtype: in which states are kept, if they were wider; None keeps them as they were read.
    """

    def __init__(
        self,
        room: Callable[[], int],
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._room, self._ttl, self._clock, self._dtype = room, ttl_seconds, clock, dtype
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        """Bytes of the documents that are kept."""

    def frozen(self, owner: str, input_ids: Tensor) -> FrozenDocument | None:
        """Return the owner's document of these token ids [1, T] as the base model reads it."""
        found = self._get((owner, document_key(input_ids)))
        return found if isinstance(found, FrozenDocument) else None

    def read_end(self, owner: str, key: str) -> ReadEnd | None:
        """Return where the reading of an owner's document under adapted weights ended."""
        found = self._get((owner, key))
        return found if isinstance(found, ReadEnd) else None

    def keep_frozen(self, owner: str, document: FrozenDocument) -> FrozenDocument:
        """Keep a document that the base model read; return it as later requests will get it."""
        narrow = self._keep((owner, document_key(document.input_ids)), document)
        return narrow if isinstance(narrow, FrozenDocument) else document

    def keep_read_end(self, owner: str, key: str, end: ReadEnd) -> ReadEnd:
        """Keep where a reading under adapted weights ended; return it as later requests get it."""
        narrow = self._keep((owner, key), end)
        return narrow if isinstance(narrow, ReadEnd) else end

    def forget(self, owner: str, key: str) -> None:
        """Drop the owner's document of this key, if it is kept."""
        with self._lock:
            if (owner, key) in self._entries:
                self._drop((owner, key))

    def drop_expired(self) -> None:
        """Drop what was not used for too long."""
        with self._lock:
            self._drop_expired()

    def shrink(self) -> None:
        """Drop what there is no room for any more."""
        with self._lock:
            while self._entries and self.nbytes > self._room():
                self._drop(next(iter(self._entries)))

    def _get(self, key: Key) -> Document | None:
        with self._lock:
            self._drop_expired()
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.used = self._clock()
            self._entries.move_to_end(key)
        return _cast(entry.document, entry.dtype)

    def _keep(self, key: Key, document: Document) -> Document:
        dtype = document.hidden.dtype
        if self._dtype is not None and self._dtype.itemsize < dtype.itemsize:
            document = _cast(document, self._dtype)
        size = document.nbytes
        with self._lock:
            self._drop_expired()
            if size <= self._room() and key not in self._entries:
                while self.nbytes + size > self._room():
                    self._drop(next(iter(self._entries)))
                self._entries[key] = _Entry(document, dtype, self._clock())
                self.nbytes += size
        return _cast(document, dtype)

    def _drop_expired(self) -> None:
        before = self._clock() - self._ttl
        while self._entries and (oldest := next(iter(self._entries.items())))[1].used < before:
            self._drop(oldest[0])

    def _drop(self, key: Key) -> None:
        self.nbytes -= self._entries.pop(key).document.nbytes


def _cast(document: Document, dtype: torch.dtype) -> Document:
    """Return a document with its states in ``dtype``; itself where they are."""
    if document.hidden.dtype == dtype:
        return document
    hidden, state = document.hidden.to(dtype), cast_floats(document.state, dtype)
    if isinstance(document, ReadEnd):
        return ReadEnd(hidden=hidden, state=state)
    snapshots = cast_floats(document.snapshots, dtype)
    return replace(document, hidden=hidden, state=state, snapshots=snapshots)
