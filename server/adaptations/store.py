"""Adaptations on disk or in an object store, so that a restarted server has them again.

An entry is a folder with ``document.safetensors`` and ``manifest.json``. The manifest is written
last and atomically, so an entry is complete or it does not exist, whenever the process is killed.
Entries are in a folder named after the base model's fingerprint, and no name that a request
contains becomes part of a path.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from pydantic import BaseModel, ConfigDict, ValidationError

from refine_server.server.adaptations.adaptation import ID_PATTERN
from refine_server.ttt.interface.config import AdaptConfig

logger = logging.getLogger(__name__)

DATA, MANIFEST, QUARANTINE = "document.safetensors", "manifest.json", "quarantine"
PARTIAL_SECONDS = 3600.0
"""An entry that has no manifest after this time will never get one."""


class StoreError(Exception):
    """The store failed; the message says why."""


class DamagedEntryError(StoreError):
    """An entry is incomplete, or of another model or version; it was moved into quarantine."""


class Manifest(BaseModel):
    """The description of an entry, readable without its tensors. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    id: str
    owner: str
    key: str | None
    created_at: float
    expires_at: float
    ttl_seconds: float
    fingerprint: str
    config: AdaptConfig
    nbytes: int
    description: dict[str, Any]
    data_bytes: int
    data_sha256: str


def require_file_system(url: str) -> None:
    """Raise StoreError unless the file systems of a URL are known to fsspec and installed.

    Nothing is connected to: a store that cannot be reached now may be reached later.
    """
    *wrappers, last = url.split("::")  # for example simplecache::s3://bucket/prefix
    for protocol in [*(wrapper.partition("://")[0] for wrapper in wrappers), get_protocol(last)]:
        with _store_errors(f"use {protocol}://"):
            fsspec.get_filesystem_class(protocol)


class Store:
    """The entries of one base model under an fsspec URL.

    Every method may block, and raises StoreError if the file system fails.

    Args:
        url: for example ``file:///var/lib/refine`` or ``s3://bucket/prefix``.
        fingerprint: hash of the base weights.
    """

    def __init__(self, url: str, fingerprint: str) -> None:
        with _store_errors("open"):
            self.fs, root = fsspec.url_to_fs(url)
        self.fingerprint = fingerprint
        self.root = f"{root.rstrip('/')}/{fingerprint[:16]}"

    def save(self, manifest: Manifest, data: bytes) -> None:
        """Write an entry completely, or not at all."""
        folder = self._folder(manifest.id)
        described = manifest.model_dump(mode="json")
        signed = {"manifest": described, "sha256": _digest(described)}
        with _store_errors("write"):
            try:
                self.fs.makedirs(folder, exist_ok=True)
                self._put(f"{folder}/{DATA}", data)
                self._put(f"{folder}/{MANIFEST}", json.dumps(signed).encode())
            except Exception:
                with contextlib.suppress(Exception):
                    self.fs.rm(folder, recursive=True)
                raise

    def load(self, entry_id: str) -> tuple[Manifest, bytes]:
        """Return an entry, verified by its checksums; raise DamagedEntryError for a damaged one."""
        manifest = self._manifest(entry_id)
        with _store_errors("read"):
            try:
                data: bytes = self.fs.cat_file(f"{self._folder(entry_id)}/{DATA}")
            except FileNotFoundError:
                raise self._damaged(entry_id, f"{DATA} is missing") from None
        if len(data) != manifest.data_bytes or _sha256(data) != manifest.data_sha256:
            raise self._damaged(entry_id, f"{DATA} does not match its checksum")
        return manifest, data

    def manifests(self) -> list[Manifest]:
        """Return all complete entries; put damaged ones into quarantine, delete abandoned ones."""
        with _store_errors("list"):
            self.fs.invalidate_cache()
            listed = self.fs.ls(self.root, detail=True) if self.fs.exists(self.root) else []
        found = []
        for info in listed:
            entry_id = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if not ID_PATTERN.fullmatch(entry_id):
                continue
            try:
                if self._is_partial(entry_id):
                    self._delete_abandoned(entry_id)
                else:
                    found.append(self._manifest(entry_id))
            except DamagedEntryError as error:
                logger.error("%s", error)
        return found

    def delete(self, entry_id: str) -> None:
        """Remove an entry, the manifest first; do nothing if there is none."""
        folder = self._folder(entry_id)
        with _store_errors("delete"):
            if self.fs.exists(f"{folder}/{MANIFEST}"):
                self.fs.rm_file(f"{folder}/{MANIFEST}")
            if self.fs.exists(folder):
                self.fs.rm(folder, recursive=True)

    def quarantine(self, entry_id: str) -> None:
        """Move an entry to a folder that is never read, for an operator to inspect."""
        target = f"{self.root}/{QUARANTINE}/{entry_id}-{secrets.token_hex(4)}"
        with _store_errors("quarantine"):
            self.fs.makedirs(f"{self.root}/{QUARANTINE}", exist_ok=True)
            self.fs.mv(self._folder(entry_id), target, recursive=True)

    def _folder(self, entry_id: str) -> str:
        if not ID_PATTERN.fullmatch(entry_id):
            raise StoreError(f"{entry_id!r} is not the id of an entry")
        return f"{self.root}/{entry_id}"

    def _manifest(self, entry_id: str) -> Manifest:
        with _store_errors("read"):
            try:
                text = self.fs.cat_file(f"{self._folder(entry_id)}/{MANIFEST}")
            except FileNotFoundError:
                raise StoreError(f"there is no entry {entry_id} in the store") from None
        try:
            signed = json.loads(text)
            if _digest(signed["manifest"]) != signed["sha256"]:
                raise self._damaged(entry_id, "the manifest does not match its checksum")
            manifest = Manifest.model_validate(signed["manifest"])
        except ValidationError as error:
            raise self._damaged(entry_id, _unreadable(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(entry_id, f"the manifest cannot be read: {error}") from None
        if manifest.id != entry_id:
            raise self._damaged(entry_id, f"its manifest is that of {manifest.id}")
        if manifest.fingerprint != self.fingerprint:
            raise self._damaged(entry_id, "it belongs to another base model")
        return manifest

    def _damaged(self, entry_id: str, reason: str) -> DamagedEntryError:
        try:
            self.quarantine(entry_id)
            reason += "; it was moved into quarantine"
        except StoreError as error:
            reason += f"; {error}"
        return DamagedEntryError(f"the stored adaptation {entry_id} cannot be used: {reason}")

    def _is_partial(self, entry_id: str) -> bool:
        with _store_errors("list"):
            return not self.fs.exists(f"{self._folder(entry_id)}/{MANIFEST}")

    def _delete_abandoned(self, entry_id: str) -> None:
        folder = self._folder(entry_id)
        with contextlib.suppress(Exception):  # another process may delete it first
            newest = max(self.fs.modified(path).timestamp() for path in self.fs.find(folder))
            if time.time() - newest > PARTIAL_SECONDS:
                self.fs.rm(folder, recursive=True)

    def _put(self, path: str, data: bytes) -> None:
        """Write a file atomically: object stores do so themselves, on a disk a rename does."""
        if not isinstance(self.fs, LocalFileSystem):
            self.fs.pipe_file(path, data)
            return
        partial = f"{path}.{secrets.token_hex(4)}"
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextlib.contextmanager
def _store_errors(operation: str) -> Iterator[None]:
    """Raise every error of a file system as a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"the store cannot {operation}: {error}") from error


def _unreadable(error: ValidationError) -> str:
    """Return why a manifest whose checksum is right does not have the form that is expected."""
    fields = sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]})
    if fields == ["config"]:
        return (
            "another version of refine-server wrote it, whose `adapt` settings have another form "
            "(before 0.2.0 they were all on one level); adapt to the document again"
        )
    return f"the manifest has unexpected fields or values: {', '.join(fields)}"


def _digest(value: object) -> str:
    return _sha256(json.dumps(value, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def describe_data(data: bytes) -> tuple[int, str]:
    """Return size and checksum as a manifest holds them."""
    return len(data), _sha256(data)
