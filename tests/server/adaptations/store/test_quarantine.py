"""Damaged entries are kept to be inspected, and never fill the disk."""

from collections.abc import Callable

import pytest

from refine_server.server.adaptations.store import quarantine
from refine_server.server.adaptations.store.files import Files
from refine_server.server.adaptations.store.quarantine import Quarantine
from support.stores import IDS


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path.as_uri())


@pytest.fixture
def add(files: Files, monkeypatch: pytest.MonkeyPatch) -> Callable[[Quarantine, int], None]:
    """Return a function that puts an entry of 10 bytes into quarantine, a second after the last."""

    def add(kept: Quarantine, number: int) -> None:
        monkeypatch.setattr(quarantine.time, "time", lambda: 1000.0 + number)
        files.write(f"entries/{IDS[number]}/document.safetensors", b"x" * 10)
        kept.add(f"entries/{IDS[number]}", IDS[number], f"reason {number}")

    return add


def test_what_is_in_quarantine_is_listed_with_its_reason(files: Files, add) -> None:
    kept = Quarantine(files)
    for number in (1, 0):
        add(kept, number)
    entries = kept.entries()
    assert [(e.id, e.at, e.nbytes) for e in entries] == [(IDS[0], 1000.0, 18), (IDS[1], 1001.0, 18)]
    assert [kept.reason(e) for e in entries] == ["reason 0", "reason 1"]
    assert files.find("entries") == []


def test_what_0_2_put_there_is_listed_too(files: Files) -> None:
    files.write(f"quarantine/{IDS[3]}-0a1b2c3d/manifest.json", b"{")
    [entry] = Quarantine(files).entries()
    assert (entry.id, entry.at, entry.nbytes) == (IDS[3], None, 1)
    assert Quarantine(files).reason(entry) is None


@pytest.mark.parametrize("bounds", [{"max_entries": 2}, {"max_bytes": 40}])
def test_the_oldest_entries_go_beyond_the_bounds(files: Files, add, bounds) -> None:
    kept = Quarantine(files, **bounds)
    for number in range(4):
        add(kept, number)
    assert [e.id for e in kept.entries()] == IDS[2:4]


def test_the_newest_entry_stays_however_large_it_is(files: Files, add) -> None:
    kept = Quarantine(files, max_bytes=1)
    for number in range(2):
        add(kept, number)
    assert [e.id for e in kept.entries()] == IDS[1:2]


def test_an_entry_that_another_server_has_moved_is_no_error(files: Files) -> None:
    kept = Quarantine(files)
    kept.add(f"entries/{IDS[0]}", IDS[0], "damaged")
    for entry in kept.entries():
        kept.delete(entry)
        kept.delete(entry)
    assert kept.entries() == []
