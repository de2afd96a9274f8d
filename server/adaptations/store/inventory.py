"""What a store has, for its operator; nothing is changed by looking."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from refine_server.server.adaptations.store.entries import ListedEntry, Store
from refine_server.server.adaptations.store.errors import (
    DamagedEntryError,
    MissingEntryError,
    UnreadableEntryError,
)
from refine_server.server.adaptations.store.files import Files
from refine_server.server.adaptations.store.manifest import Manifest
from refine_server.server.adaptations.store.quarantine import QuarantinedEntry

State = Literal["ready", "expired", "incomplete", "unreadable", "damaged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEntry:
    """An entry as an operator sees it."""

    model: str
    """First 16 characters of the base weights' hash."""
    id: str
    state: State
    """Incomplete: it is being written, or its server was killed. Unreadable: another version of
    refine-server wrote it."""
    nbytes: int
    """Bytes of its files."""
    owner: str | None = None
    """Name of the API key that it belongs to; None where the manifest cannot be read."""
    created_at: float | None = None
    """In seconds since 1970."""
    expires_at: float | None = None
    """When it expires unless it is used, in seconds since 1970."""
    problem: str | None = None
    """Why it cannot be used."""


def stores(url: str) -> Iterator[tuple[str, Store]]:
    """Yield the part of a store that belongs to each base model, by the model's folder."""
    for model in Files(url).folders():
        yield model, Store(url, model)


def entries(url: str, *, reads_data: bool = False) -> Iterator[StoredEntry]:
    """Yield all entries of a store.

    Args:
        url: the store.
        reads_data: whether to verify the tensors' checksums too, which reads all of them.
    """
    for model, store in stores(url):
        for entry in sorted(store.entries(), key=lambda e: e.id):
            found = partial(StoredEntry, model=model, id=entry.id, nbytes=entry.nbytes)
            if not entry.is_complete:
                if not store.exists(entry.id):
                    yield found(state="incomplete")
                continue
            try:
                manifest = store.verify(entry.id)[0] if reads_data else store.inspect(entry.id)
                yield _complete(model, store, entry, manifest)
            except MissingEntryError:
                continue  # deleted since it was listed
            except UnreadableEntryError as error:
                yield found(state="unreadable", problem=str(error))
            except DamagedEntryError as error:
                yield found(state="damaged", problem=str(error))


def quarantined(url: str) -> Iterator[tuple[str, QuarantinedEntry, str | None]]:
    """Yield the damaged entries of a store: the base model's folder, the entry, and its reason."""
    for model, store in stores(url):
        for entry in store.quarantine.entries():
            yield model, entry, store.quarantine.reason(entry)


def empty_quarantine(url: str) -> None:
    """Delete the damaged entries of a store for good."""
    for _, store in stores(url):
        for entry in store.quarantine.entries():
            store.quarantine.delete(entry)


def _complete(model: str, store: Store, entry: ListedEntry, manifest: Manifest) -> StoredEntry:
    expires_at = store.expires_at(manifest)
    return StoredEntry(
        model=model,
        id=entry.id,
        state="ready" if expires_at > time.time() else "expired",
        nbytes=entry.nbytes,
        owner=manifest.owner,
        created_at=manifest.created_at,
        expires_at=None if expires_at == math.inf else expires_at,
    )
