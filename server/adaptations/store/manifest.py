"""The description of an entry: what it holds, how it is signed, and which versions can be read."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from refine_server.server.adaptations.store.errors import DamagedEntryError, UnreadableEntryError
from refine_server.server.adaptations.store.migrations import VERSION, migrate
from refine_server.ttt.interface.config import AdaptConfig


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
    data_file: str
    """Name of the file with the tensors, in the entry's folder."""
    data_bytes: int
    data_sha256: str


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as the bytes of its file, with its version and its checksum."""
    described = manifest.model_dump(mode="json")
    signed = {"version": VERSION, "manifest": described, "sha256": _digest(described)}
    return json.dumps(signed).encode()


def decode(text: bytes, entry_id: str, fingerprint: str) -> Manifest:
    """Read a manifest's file, migrated to the present version.

    Args:
        text: the bytes of the file.
        entry_id: the entry in whose folder it is.
        fingerprint: hash of the base weights in whose folder the entry is, or its beginning.

    Raises:
        UnreadableEntryError: another version of refine-server wrote it.
        DamagedEntryError: it has changed since it was written.
    """
    try:
        signed = json.loads(text)
        version = signed.get("version", 1)
        if isinstance(version, int) and version > VERSION:
            raise UnreadableEntryError(
                f"a newer version of refine-server wrote it (its format is {version}, this version "
                f"reads up to {VERSION}); use that version, or adapt to the document again"
            )
        if _digest(signed["manifest"]) != signed["sha256"]:
            raise DamagedEntryError("the manifest does not match its checksum")
        manifest = Manifest.model_validate(migrate(version, signed["manifest"]))
    except ValidationError as error:  # the checksum is right: it was written like this
        fields = sorted({".".join(map(str, e["loc"])) for e in error.errors()})
        raise UnreadableEntryError(
            "another version of refine-server wrote it, with fields or values that this version "
            f"does not know: {', '.join(fields)}; use that version, or adapt to the document again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntryError(f"the manifest cannot be read: {error}") from None
    if manifest.id != entry_id:
        raise DamagedEntryError(f"its manifest is that of {manifest.id}")
    if not manifest.fingerprint.startswith(fingerprint):
        raise DamagedEntryError("it belongs to another base model")
    return manifest


def describe_data(data: bytes) -> tuple[int, str]:
    """Return size and checksum as a manifest holds them."""
    return len(data), hashlib.sha256(data).hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
