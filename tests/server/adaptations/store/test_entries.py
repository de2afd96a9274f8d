"""The store has complete entries only, whatever happens to it and whoever else uses it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refine_server.server.adaptations.store.entries import (
    ENTRIES,
    MANIFEST,
    PARTIAL_SECONDS,
    Store,
)
from refine_server.server.adaptations.store.errors import (
    DamagedEntryError,
    MissingEntryError,
    StoreError,
    UnreadableEntryError,
)
from refine_server.server.adaptations.store.manifest import VERSION
from support.stores import FINGERPRINT, IDS, change_manifest, manifest, save


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return tmp_path.as_uri()
    return f"memory://{tmp_path.name}/prefix"


def ids(store: Store) -> list[str]:
    return sorted(m.id for m in store.manifests(store.entries()))


def test_entries_are_saved_loaded_listed_and_deleted(url: str) -> None:
    store = Store(url, FINGERPRINT)
    assert store.manifests(store.entries()) == []
    written = [save(store, IDS[i], bytes([i]) * 100) for i in (1, 2)]
    again = Store(url, FINGERPRINT)
    assert ids(again) == IDS[1:3]
    assert again.load(IDS[2]) == (written[1], b"\2" * 100)
    again.delete(IDS[1])
    again.delete(IDS[1])
    assert ids(store) == [IDS[2]]
    with pytest.raises(MissingEntryError, match="no entry"):
        store.load(IDS[1])


def test_another_models_entries_are_not_seen(url: str) -> None:
    save(Store(url, FINGERPRINT), IDS[0])
    assert Store(url, "0" * 64).entries() == []


@pytest.mark.parametrize("bad", ["../../etc/passwd", "adapt-1", "", "adapt-" + "g" * 32])
def test_only_valid_ids_become_paths(url: str, bad: str) -> None:
    store = Store(url, FINGERPRINT)
    for use in (store.load, store.delete, store.exists, lambda id: store.touch(id, 0.0)):
        with pytest.raises(StoreError, match="not the id of an entry"):
            use(bad)


def test_of_two_that_write_one_entry_the_first_has_written_it(url: str) -> None:
    ours, theirs = Store(url, FINGERPRINT), Store(url, FINGERPRINT)
    first = save(ours, IDS[0], b"ours")
    assert not theirs.save(manifest(IDS[0], b"theirs"), b"theirs")
    assert theirs.load(IDS[0]) == ours.load(IDS[0]) == (first, b"ours")
    assert len(ours.files.find(ENTRIES)) == 2  # what was not used is deleted


# -- damage ---------------------------------------------------------------------------------


def data_path(store: Store) -> str:
    return f"{ENTRIES}/{IDS[0]}/{store.manifest(IDS[0]).data_file}"


def damage_data(store: Store) -> None:
    data = bytearray(store.files.read(data_path(store)) or b"")
    data[50] ^= 1
    store.files.write(data_path(store), bytes(data))


def cut_data(store: Store) -> None:
    store.files.write(data_path(store), (store.files.read(data_path(store)) or b"")[:-1])


def lose_data(store: Store) -> None:
    store.files.delete(data_path(store))


def change_text(store: Store, change: Callable[[bytes], bytes]) -> None:
    path = f"{ENTRIES}/{IDS[0]}/{MANIFEST}"
    store.files.write(path, change(store.files.read(path) or b""))


def change_owner(store: Store) -> None:
    change_text(store, lambda text: text.replace(b'"local"', b'"thief"'))


def cut_manifest(store: Store) -> None:
    change_text(store, lambda text: text[:-9])


def wrong_shape(store: Store) -> None:
    change_text(store, lambda _: b"[1]")


def take_another_entrys(store: Store) -> None:
    change_manifest(store, IDS[0], lambda signed: signed["manifest"].update(id=IDS[5]))


def take_another_models(store: Store) -> None:
    change_manifest(store, IDS[0], lambda signed: signed["manifest"].update(fingerprint="0" * 64))


DAMAGES = [
    *(damage_data, cut_data, lose_data, change_owner, cut_manifest, wrong_shape),
    *(take_another_entrys, take_another_models),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_refused_and_quarantined(
    url: str, damage: Callable[[Store], None]
) -> None:
    store = Store(url, FINGERPRINT)
    save(store, IDS[0])
    save(store, IDS[1])
    damage(store)
    with pytest.raises(DamagedEntryError, match="quarantine") as refused:
        store.load(IDS[0])
    assert ids(store) == [IDS[1]]
    [kept] = store.quarantine.entries()
    assert kept.id == IDS[0]
    assert store.quarantine.reason(kept) in str(refused.value)


def test_what_is_cut_off_on_the_way_is_read_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(url, FINGERPRINT)
    written = save(store, IDS[0])
    read, cut = store.files.read, ["data", "manifest"]

    def torn(path: str) -> bytes | None:
        data = read(path)
        part = "manifest" if path.endswith(MANIFEST) else "data"
        if part not in cut:
            return data
        cut.remove(part)
        return (data or b"")[:-5]

    monkeypatch.setattr(store.files, "read", torn)
    assert store.load(IDS[0]) == (written, b"x" * 100)
    assert (cut, store.quarantine.entries()) == ([], [])


# -- versions -------------------------------------------------------------------------------


def newer_format(signed: dict[str, Any]) -> None:
    signed["version"] = VERSION + 1
    signed["manifest"] = {"everything": "is different"}


def unknown_field(signed: dict[str, Any]) -> None:
    signed["manifest"]["colour"] = "red"


def unknown_setting(signed: dict[str, Any]) -> None:
    signed["manifest"]["config"]["optimizer"]["momentum"] = 0.9


def unknown_value(signed: dict[str, Any]) -> None:
    signed["manifest"]["config"]["objective"] = "sing"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (newer_format, "newer version of refine-server"),
        (unknown_field, "colour"),
        (unknown_setting, "config.optimizer.momentum"),
        (unknown_value, "config.objective"),
    ],
)
def test_an_entry_of_another_version_is_refused_and_left_as_it_is(
    url: str, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    store = Store(url, FINGERPRINT)
    save(store, IDS[0])
    save(store, IDS[1])
    change_manifest(store, IDS[0], change)
    before = store.files.find()
    with pytest.raises(UnreadableEntryError, match="version of refine-server") as refused:
        store.load(IDS[0])
    assert named in str(refused.value)
    assert "adapt to the document again" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ids(store) == [IDS[1]]
    assert store.unreadable.keys() == {IDS[0]}
    assert store.files.find() == before


# -- crashes --------------------------------------------------------------------------------


def test_an_entry_without_manifest_is_not_there_and_is_deleted_when_old(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri(), FINGERPRINT)
    path = f"{ENTRIES}/{IDS[0]}/document.safetensors"
    store.files.write(path, b"half")
    assert store.manifests(store.entries()) == []
    assert store.files.read(path)  # it may be being written
    long_ago = time.time() - 2 * PARTIAL_SECONDS
    os.utime(f"{store.files.root}/{path}", (long_ago, long_ago))
    assert store.manifests(store.entries()) == []
    assert store.files.find() == []


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path.as_uri(), FINGERPRINT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        save(store, IDS[0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


WRITER = """
import sys, itertools
from support.stores import FINGERPRINT, save
from refine_server.server.adaptations.store.entries import Store
store, first = Store(sys.argv[1], FINGERPRINT), int(sys.argv[2])
for i in itertools.count(first, 2):
    save(store, f"adapt-{i:032x}", bytes([i % 251]) * (1 << 20))
    print(i, flush=True)
"""


@pytest.mark.parametrize("moment", [0.0, 0.011, 0.023, 0.037, 0.05])
def test_of_two_writers_that_are_killed_whole_entries_are_left(
    tmp_path: Path, moment: float
) -> None:
    support = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([support, *sys.path])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, tmp_path.as_uri(), str(first)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for first in (0, 1)
    ]
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
    for writer in writers:
        time.sleep(moment)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    store = Store(tmp_path.as_uri(), FINGERPRINT)
    found = store.manifests(store.entries())
    assert len(found) >= 6
    for entry in found:
        _, data = store.load(entry.id)
        assert data == data[:1] * (1 << 20)
    assert store.quarantine.entries() == []


# -- use ------------------------------------------------------------------------------------


def test_the_use_of_an_entry_by_one_server_keeps_it_for_all(url: str) -> None:
    ours, theirs = Store(url, FINGERPRINT), Store(url, FINGERPRINT)
    entry = save(ours, IDS[0], expires_at=110.0, ttl_seconds=10.0)
    assert theirs.expires_at(entry) == 110.0
    ours.touch(IDS[0], 105.5)
    assert theirs.expires_at(entry) == 115.5
    assert theirs.load(IDS[0])[0] == entry


def test_a_marker_that_is_damaged_or_old_does_not_make_an_entry_older(url: str) -> None:
    store = Store(url, FINGERPRINT)
    entry = save(store, IDS[0], expires_at=110.0, ttl_seconds=10.0)
    for text in (b"", b"x", b"99.0"):
        store.files.write(f"{ENTRIES}/{IDS[0]}/used", text)
        assert store.expires_at(entry) == 110.0


def test_the_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri(), FINGERPRINT)
    save(store, IDS[0])
    [path] = tmp_path.rglob(MANIFEST)
    signed = json.loads(path.read_text())
    assert signed["version"] == VERSION
    assert signed["manifest"]["config"]["optimizer"]["steps"] == 3
