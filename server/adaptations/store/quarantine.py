"""Damaged entries, kept for an operator to inspect, within bounds."""

import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass

from refine_server.server.adaptations.store.files import Files

QUARANTINE, REASON = "quarantine", "reason.txt"
MAX_ENTRIES, MAX_BYTES = 100, 2**30
"""What the quarantine keeps at most; the oldest entries are deleted first."""
NAME = re.compile(r"(?:(?P<at>\d+)-)?(?P<id>adapt-[0-9a-f]{32})-[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantinedEntry:
    """A damaged entry."""

    name: str
    """Name of its folder in the quarantine."""
    id: str
    """Id of the adaptation that it was."""
    at: float | None
    """When it was put there, in seconds since 1970; None for one of refine-server 0.2 or older."""
    nbytes: int
    """Bytes of its files."""


class Quarantine:
    """A folder that the server only writes; the oldest entries go when it exceeds its bounds.

    Args:
        files: the store of one base model.
        max_entries: the most entries that it keeps.
        max_bytes: the most bytes that its files take; the newest entry stays in any case.
    """

    def __init__(
        self, files: Files, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._files, self._max_entries, self._max_bytes = files, max_entries, max_bytes

    def add(self, folder: str, entry_id: str, reason: str) -> None:
        """Move an entry's folder into the quarantine; delete the oldest entries beyond the bounds.

        Raises:
            StoreError: it cannot be moved.
        """
        target = f"{QUARANTINE}/{int(time.time()):010d}-{entry_id}-{secrets.token_hex(4)}"
        self._files.move_folder(folder, target)
        self._files.write(f"{target}/{REASON}", reason.encode())
        kept, nbytes = 0, 0
        for entry in reversed(self.entries()):
            kept, nbytes = kept + 1, nbytes + entry.nbytes
            if kept > 1 and (kept > self._max_entries or nbytes > self._max_bytes):
                self.delete(entry)

    def entries(self) -> list[QuarantinedEntry]:
        """Return what is in quarantine, the oldest first."""
        nbytes: Counter[str] = Counter()
        for file in self._files.find(QUARANTINE):
            nbytes[file.path.split("/")[1]] += file.size
        found = (_entry(name, size) for name, size in nbytes.items())
        return sorted((entry for entry in found if entry), key=lambda e: (e.at or 0.0, e.name))

    def reason(self, entry: QuarantinedEntry) -> str | None:
        """Return what was wrong with an entry; None for one of refine-server 0.2 or older."""
        reason = self._files.read(f"{QUARANTINE}/{entry.name}/{REASON}")
        return None if reason is None else reason.decode(errors="replace")

    def delete(self, entry: QuarantinedEntry) -> None:
        """Delete an entry for good."""
        self._files.delete_folder(f"{QUARANTINE}/{entry.name}")


def _entry(name: str, nbytes: int) -> QuarantinedEntry | None:
    match = NAME.fullmatch(name)
    if match is None:
        return None
    at = float(match["at"]) if match["at"] else None
    return QuarantinedEntry(name=name, id=match["id"], at=at, nbytes=nbytes)
