"""The entries of a store, so that a restarted server, or another one, has the adaptations again.

An entry is a folder with the tensors and ``manifest.json``. The manifest is written last and only
if there is none yet, so that an entry is complete and never changes, or does not exist, whenever a
server is killed and however many write it. Entries are in a folder named after the base model's
fingerprint, and no name that a request contains becomes part of a path.
"""

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from refine_server.server.adaptations.ids import ID_PATTERN
from refine_server.server.adaptations.label import Label
from refine_server.server.adaptations.store.errors import (
    DamagedEntryError,
    MissingEntryError,
    StoreError,
    UnreadableEntryError,
)
from refine_server.server.adaptations.store.files import Files
from refine_server.server.adaptations.store.manifest import (
    Manifest,
    decode,
    describe_data,
    encode,
)
from refine_server.server.adaptations.store.quarantine import Quarantine

logger = logging.getLogger(__name__)

ENTRIES, MANIFEST, USED, LABEL = "entries", "manifest.json", "used", "label.json"
PARTIAL_SECONDS = 3600.0
"""An entry that has no manifest this long after its last change will never get one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedEntry:
    """An entry as a listing shows it."""

    id: str
    folder: str
    """Its path: in the folder of entries, or at the root where 0.2 and older put them."""
    nbytes: int
    """Bytes of its files."""
    is_complete: bool
    """Whether it has a manifest."""


class Store:
    """The entries of one base model under an fsspec URL.

    Every method may block, and raises StoreError if the file system fails.

    Args:
        url: for example ``file:///var/lib/refine`` or ``s3://bucket/prefix``.
        fingerprint: hash of the base weights, or its first 16 characters.
    """

    def __init__(self, url: str, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.files = Files(url).within(fingerprint[:16])
        self.quarantine = Quarantine(self.files)
        self.unreadable: dict[str, str] = {}
        """Entries of other versions that were found, and why they cannot be read."""

    # -- one entry ----------------------------------------------------------------------------

    def save(self, manifest: Manifest, data: bytes) -> bool:
        """Write an entry completely, or not at all.

        Returns:
            Whether it is the entry now; another server may have written one of this id before.
        """
        folder = entry_folder(manifest.id)
        path = f"{folder}/{manifest.data_file}"
        is_saved = False
        try:
            self.files.write(path, data)
            if self.files.size(path) != len(data):
                raise StoreError(f"the store cannot write: {path} is cut off")
            is_saved = self.files.create(f"{folder}/{MANIFEST}", encode(manifest))
        finally:
            if not is_saved:
                with contextlib.suppress(StoreError):
                    self.files.delete(path)
        return is_saved

    def load(self, entry_id: str) -> tuple[Manifest, bytes]:
        """Return an entry, verified by its checksums.

        Raises:
            MissingEntryError: there is none.
            UnreadableEntryError: another version wrote it.
            DamagedEntryError: it is damaged, and now in quarantine.
        """
        with self._quarantine_if_damaged(entry_id):
            return self.verify(entry_id)

    def manifest(self, entry_id: str) -> Manifest:
        """Return an entry's manifest; for the errors see ``load``."""
        with self._quarantine_if_damaged(entry_id):
            return self._manifest(entry_id)[1]

    def inspect(self, entry_id: str) -> Manifest:
        """Do the same as ``manifest``, but leave a damaged entry where it is."""
        return self._manifest(entry_id)[1]

    def verify(self, entry_id: str) -> tuple[Manifest, bytes]:
        """Do the same as ``load``, but leave a damaged entry where it is."""
        folder, manifest = self._manifest(entry_id)
        problem = ""
        for _ in range(2):  # what is wrong twice is wrong in the store, not on the way from it
            data = self.files.read(f"{folder}/{manifest.data_file}")
            if data is None:
                self._manifest(entry_id)  # raises if the entry was deleted meanwhile
                problem = f"{manifest.data_file} is missing"
            elif describe_data(data) != (manifest.data_bytes, manifest.data_sha256):
                problem = f"{manifest.data_file} does not match its checksum"
            else:
                return manifest, data
        raise DamagedEntryError(problem)

    def exists(self, entry_id: str) -> bool:
        """Return whether there is a complete entry, readable or not."""
        return any(
            self.files.size(f"{folder}/{MANIFEST}") is not None for folder in _folders(entry_id)
        )

    def delete(self, entry_id: str) -> None:
        """Remove an entry, the manifest first; do nothing if there is none."""
        for folder in _folders(entry_id):
            self.files.delete(f"{folder}/{MANIFEST}")
            self.files.delete_folder(folder)

    # -- when it was used ---------------------------------------------------------------------

    def touch(self, entry_id: str, now: float) -> None:
        """Record for all servers that an entry is used.

        Args:
            entry_id: the entry.
            now: seconds since 1970.
        """
        self.files.write(
            f"{entry_folder(entry_id)}/{USED}", f"{now:.3f}".encode(), is_durable=False
        )

    def last_used(self, entry_id: str) -> float:
        """Return when a server last recorded that it uses an entry, in seconds since 1970; or 0."""
        marker = self.files.read(f"{entry_folder(entry_id)}/{USED}")
        try:
            return 0.0 if marker is None else float(marker)
        except ValueError:
            return 0.0

    def write_label(self, entry_id: str, label: Label) -> None:
        """Write the name of an entry, and whether it is pinned, for all servers."""
        self.files.write(f"{entry_folder(entry_id)}/{LABEL}", label.model_dump_json().encode())

    def label(self, entry_id: str) -> Label:
        """Return the name of an entry, and whether it is pinned."""
        text = self.files.read(f"{entry_folder(entry_id)}/{LABEL}")
        try:
            return Label() if text is None else Label.model_validate_json(text)
        except ValidationError:
            return Label()

    def expires_at(self, manifest: Manifest) -> float:
        """Return when an entry expires that no server uses again, in seconds since 1970.

        It is infinity for one that is pinned.
        """
        if self.label(manifest.id).pinned:
            return math.inf
        return max(manifest.expires_at, self.last_used(manifest.id) + manifest.ttl_seconds)

    # -- all entries --------------------------------------------------------------------------

    def entries(self) -> list[ListedEntry]:
        """Return all entries, complete or not, as the store lists them."""
        found: dict[str, tuple[int, bool]] = {}
        for file in self.files.find():
            folder, _, name = file.path.rpartition("/")
            if ID_PATTERN.fullmatch(folder.removeprefix(f"{ENTRIES}/")):
                nbytes, is_complete = found.get(folder, (0, False))
                found[folder] = nbytes + file.size, is_complete or name == MANIFEST
        return [
            ListedEntry(
                id=folder.rpartition("/")[2], folder=folder, nbytes=nbytes, is_complete=is_complete
            )
            for folder, (nbytes, is_complete) in found.items()
        ]

    def manifests(
        self, listed: Collection[ListedEntry], known: Collection[str] = ()
    ) -> list[Manifest]:
        """Return the manifests of entries that are listed, but of those with a known id.

        Damaged entries are put into quarantine, and abandoned ones are deleted. Those that only
        another version can read are left as they are.
        """
        found = []
        for entry in listed:
            if entry.id in known or entry.id in self.unreadable:
                continue
            try:
                if entry.is_complete:
                    found.append(self.manifest(entry.id))
                else:
                    self._delete_if_abandoned(entry)
            except MissingEntryError:
                pass  # deleted since it was listed
            except UnreadableEntryError as error:
                self.unreadable[entry.id] = str(error)
                logger.warning("%s", error)
            except DamagedEntryError as error:
                logger.error("%s", error)
        return found

    def _manifest(self, entry_id: str) -> tuple[str, Manifest]:
        """Return an entry's folder and manifest."""
        folder, text = self._read_manifest(entry_id)
        try:
            return folder, decode(text, entry_id, self.fingerprint)
        except DamagedEntryError:
            folder, text = self._read_manifest(entry_id)  # as in ``verify``
        return folder, decode(text, entry_id, self.fingerprint)

    def _read_manifest(self, entry_id: str) -> tuple[str, bytes]:
        for folder in _folders(entry_id):
            text = self.files.read(f"{folder}/{MANIFEST}")
            if text is not None:
                return folder, text
        raise MissingEntryError(f"there is no entry {entry_id} in the store")

    @contextlib.contextmanager
    def _quarantine_if_damaged(self, entry_id: str) -> Iterator[None]:
        """Name the entry in the errors about it, and put a damaged one into quarantine."""
        try:
            yield
        except UnreadableEntryError as error:
            raise UnreadableEntryError(_unusable(entry_id, str(error))) from None
        except DamagedEntryError as error:
            reason = str(error)
            try:
                folder, _ = self._read_manifest(entry_id)
                self.quarantine.add(folder, entry_id, reason)
                reason += "; it was moved into quarantine"
            except StoreError as failure:
                reason += f"; {failure}"
            raise DamagedEntryError(_unusable(entry_id, reason)) from None

    def _delete_if_abandoned(self, entry: ListedEntry) -> None:
        if entry.folder != entry.id and self.exists(entry.id):
            return  # where 0.2 put it, with a marker of its use here
        times = [self.files.modified(file.path) for file in self.files.find(entry.folder)]
        newest = max((at for at in times if at is not None), default=time.time())
        if time.time() - newest > PARTIAL_SECONDS:
            self.files.delete_folder(entry.folder)


def entry_folder(entry_id: str) -> str:
    """Return the path of an entry's folder; raise StoreError for what is not an id."""
    if not ID_PATTERN.fullmatch(entry_id):
        raise StoreError(f"{entry_id!r} is not the id of an entry")
    return f"{ENTRIES}/{entry_id}"


def _unusable(entry_id: str, reason: str) -> str:
    return f"the stored adaptation {entry_id} cannot be used: {reason}"


def _folders(entry_id: str) -> tuple[str, str]:
    """Return where an entry may be: in its folder, or where versions up to 0.2 put it."""
    return entry_folder(entry_id), entry_id


def new_data_file() -> str:
    """Return a name for an entry's tensors that no other server chooses."""
    return f"document-{secrets.token_hex(8)}.safetensors"
