"""Checks a store's entries from outside, against the documented format."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path


def damaged_entries(store: Path) -> list[str]:
    """List entries that have a manifest but are incomplete, and entries in quarantine.

    A folder without a manifest is not an entry yet: its process was killed before the last write.
    """
    found = []
    for manifest in store.rglob("manifest.json"):
        if "quarantine" in manifest.parts:
            found.append(f"{manifest.parent.name}: in quarantine")
        else:
            found += [f"{manifest.parent.name}: {fault}" for fault in _faults(manifest)]
    return found


def entries(store: Path) -> set[str]:
    """Return the ids of the entries that have a manifest."""
    manifests = store.rglob("manifest.json")
    return {m.parent.name for m in manifests if "quarantine" not in m.parts}


def _faults(path: Path) -> Iterator[str]:
    try:
        signed = json.loads(path.read_bytes())
        manifest = signed["manifest"]
        described = json.dumps(manifest, sort_keys=True).encode()
        data = (path.parent / manifest["data_file"]).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"cannot be read: {error!r}"
        return
    if hashlib.sha256(described).hexdigest() != signed["sha256"]:
        yield "the manifest's checksum is wrong"
    if hashlib.sha256(data).hexdigest() != manifest["data_sha256"]:
        yield "the data's checksum is wrong"
    if manifest["id"] != path.parent.name:
        yield "it has another entry's name"
