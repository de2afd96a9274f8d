"""Entries for tests of the store, and changes of what is stored."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from refine_server.server.adaptations.store.entries import ENTRIES, MANIFEST, Store, new_data_file
from refine_server.server.adaptations.store.manifest import Manifest, describe_data
from refine_server.ttt.interface.config import AdaptConfig

FINGERPRINT = "f" * 64
IDS = [f"adapt-{i:032x}" for i in range(9)]


def manifest(entry_id: str, data: bytes, **changes: object) -> Manifest:
    """Return the manifest of an entry with these tensors, last used at 1.0."""
    size, checksum = describe_data(data)
    values = {
        "id": entry_id,
        "owner": "local",
        "key": "k",
        "created_at": 1.0,
        "expires_at": 2.0,
        "ttl_seconds": 1.0,
        "fingerprint": FINGERPRINT,
        "config": AdaptConfig().updated(optimizer={"steps": 3}),
        "nbytes": 10,
        "description": {"a": [1, None, 2.5]},
        "data_file": new_data_file(),
        "data_bytes": size,
        "data_sha256": checksum,
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def save(store: Store, entry_id: str, data: bytes = b"x" * 100, **changes: object) -> Manifest:
    """Write an entry; return its manifest."""
    written = manifest(entry_id, data, **changes)
    assert store.save(written, data)
    return written


def change_manifest(store: Store, entry_id: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what an entry's manifest file holds, and sign it as a server would have."""
    path = f"{ENTRIES}/{entry_id}/{MANIFEST}"
    signed = json.loads(store.files.read(path) or b"")
    change(signed)
    text = json.dumps(signed["manifest"], sort_keys=True).encode()
    signed["sha256"] = hashlib.sha256(text).hexdigest()
    store.files.write(path, json.dumps(signed).encode())
