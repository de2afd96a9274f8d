"""Who makes an adaptation that is not stored yet, so that several servers make it once.

Three kinds of files beside the entries, which only need what disks and object stores have:

- ``keys/<key>`` has the id of the adaptation to a document. It is created if there is none, so that
  of several servers that are asked for the same adaptation at the same time one makes it.
- ``entries/<id>/lease-<term>`` is written again every few seconds by the server that makes it. A
  server that sees it unchanged for ``LEASE_SECONDS`` of its own clock takes over, by creating the
  lease of the next term. Clocks are not compared.
- ``entries/<id>/cancelled`` tells the server that makes it that it was deleted through another.

A server that was only slow may finish beside the one that took over. That costs work, and nothing
else, as the first manifest is the entry (``entries``).
"""

import contextlib
from typing import Self

from pydantic import BaseModel

from refine_server.server.adaptations.ids import ID_PATTERN
from refine_server.server.adaptations.store.entries import Store, entry_folder
from refine_server.server.adaptations.store.errors import MissingEntryError
from refine_server.server.adaptations.store.manifest import Manifest
from refine_server.ttt.interface.config import AdaptConfig

BEAT_SECONDS = 3.0
"""Time between two writes of a lease by its holder."""
LEASE_SECONDS = 15.0
"""A lease that has not changed for this long has no holder any more."""
KEYS, CANCELLED = "keys", "cancelled"


class Failure(BaseModel):
    """Why an adaptation failed, as the API tells it."""

    status: int
    message: str
    code: str
    param: str | None = None


class Lease(BaseModel):
    """An adaptation that a server makes, as far as other servers show it to its owner."""

    id: str
    owner: str
    key: str
    """What was asked for, as ``adaptation.request_key`` makes it."""
    config: AdaptConfig
    created_at: float
    """In seconds since 1970."""
    ttl_seconds: float
    holder: str
    """The server that makes it."""
    term: int = 0
    """How often another server took over."""
    beat: int = 0
    """How often it was renewed."""
    is_admitted: bool = False
    """Whether its work was accepted, so that somebody knows its id."""
    failure: Failure | None = None
    """Why it ended without an entry."""

    def renewed(self) -> Self:
        """Return the lease for the next few seconds."""
        return self.model_copy(update={"beat": self.beat + 1})


class Leases:
    """The leases of one base model's store. Every method may block, and raises StoreError.

    Args:
        store: has the entries that the leases become.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._files = store, store.files

    def claim(self, wanted: Lease) -> Lease | Manifest:
        """Find who makes an adaptation, or begin to make it.

        Args:
            wanted: the lease for a new adaptation with the same key.

        Returns:
            A lease of ``wanted``'s holder, which is to make the adaptation now, of this id; another
            server's lease; or the manifest of an adaptation that is stored.

        Raises:
            UnreadableEntryError: another version of refine-server has made it.
            DamagedEntryError: it was damaged; the next claim is a new one.
        """
        while True:
            entry_id = self._id_of(wanted.key)
            if entry_id is None:
                self.write(wanted)
                if self._files.create(f"{KEYS}/{wanted.key}", wanted.id.encode()):
                    return wanted
                self._files.delete_folder(entry_folder(wanted.id))
                continue
            found = self.find(entry_id)
            if isinstance(found, Manifest):
                return found
            if found is None or found.failure is not None:  # of one that has just ended
                self.release_key(wanted.key, entry_id)
            elif found.holder != wanted.holder:
                return found
            elif (taken := self.take_over(found, wanted)) is not None:  # whose client was gone
                return taken

    def take_over(self, left: Lease, wanted: Lease) -> Lease | None:
        """Continue what another server has left; return None if a third was faster.

        Args:
            left: a lease that was not renewed for ``LEASE_SECONDS``.
            wanted: the lease for a new adaptation with the same key.
        """
        taken = wanted.model_copy(
            update={"id": left.id, "created_at": left.created_at, "term": left.term + 1}
        )
        if not self._files.create(_path(taken), _encode(taken)):
            return None
        self._files.create(f"{KEYS}/{taken.key}", taken.id.encode())  # it may have been released
        return taken

    def find(self, entry_id: str) -> Manifest | Lease | None:
        """Return the manifest of a stored adaptation, the lease of one that is made, or None."""
        for _ in range(2):  # a lease ends after the manifest is written, so one of both is seen
            with contextlib.suppress(MissingEntryError):
                return self._store.manifest(entry_id)
            if (lease := self._latest(entry_id)) is not None:
                return None if self.is_cancelled(entry_id) else lease
        return None

    def write(self, lease: Lease) -> None:
        """Write a lease, or renew it."""
        self._files.write(_path(lease), _encode(lease), is_durable=False)

    def end(self, lease: Lease, failure: Failure | None) -> None:
        """Give a lease up: its adaptation is stored now, or it has failed.

        Of a failed one the reason stays for an hour, for servers that wait for it.
        """
        if failure is None:
            self._files.delete(_path(lease))
        else:
            self.release_key(lease.key, lease.id)
            self.write(lease.model_copy(update={"failure": failure}))

    def drop(self, lease: Lease) -> None:
        """Remove a lease of which nothing came, as if it had never been claimed."""
        self.release_key(lease.key, lease.id)
        self._files.delete(_path(lease))

    def cancel(self, entry_id: str) -> None:
        """Tell the server that makes an adaptation, and those that wait, that it is deleted."""
        self._files.write(f"{entry_folder(entry_id)}/{CANCELLED}", b"")

    def is_cancelled(self, entry_id: str) -> bool:
        """Return whether an adaptation was deleted while it was made."""
        return self._files.size(f"{entry_folder(entry_id)}/{CANCELLED}") is not None

    def release_key(self, key: str, entry_id: str) -> None:
        """Let no other request join an adaptation by its key."""
        if self._id_of(key) in (entry_id, None):
            self._files.delete(f"{KEYS}/{key}")

    def _id_of(self, key: str) -> str | None:
        text = (self._files.read(f"{KEYS}/{key}") or b"").decode(errors="replace")
        return text if ID_PATTERN.fullmatch(text) else None

    def _latest(self, entry_id: str) -> Lease | None:
        """Return the lease of the last term. That of an earlier one may have been given up."""
        found, term, missing = None, 0, 0
        while missing < 2:
            text = self._files.read(f"{entry_folder(entry_id)}/lease-{term}")
            if text is None:
                missing += 1
            else:
                found, missing = Lease.model_validate_json(text), 0
            term += 1
        return found


def _path(lease: Lease) -> str:
    return f"{entry_folder(lease.id)}/lease-{lease.term}"


def _encode(lease: Lease) -> bytes:
    return lease.model_dump_json().encode()
