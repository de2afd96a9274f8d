"""The store has complete entries only, whatever happens to it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from refine_server.server.adaptations.store import (
    DATA,
    MANIFEST,
    PARTIAL_SECONDS,
    QUARANTINE,
    DamagedEntryError,
    Manifest,
    Store,
    StoreError,
    describe_data,
)
from refine_server.ttt.interface.config import AdaptConfig

FINGERPRINT = "f" * 64
IDS = [f"adapt-{i:032x}" for i in range(9)]


def manifest(entry_id: str, data: bytes, **changes: object) -> Manifest:
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
        "data_bytes": size,
        "data_sha256": checksum,
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return tmp_path.as_uri()
    return f"memory://{tmp_path.name}/prefix"


def test_entries_are_saved_loaded_listed_and_deleted(url: str) -> None:
    store = Store(url, FINGERPRINT)
    assert store.manifests() == []
    for i in (1, 2):
        store.save(manifest(IDS[i], bytes([i]) * 100), bytes([i]) * 100)
    again = Store(url, FINGERPRINT)
    assert sorted(m.id for m in again.manifests()) == IDS[1:3]
    assert again.load(IDS[2]) == (manifest(IDS[2], b"\2" * 100), b"\2" * 100)
    again.delete(IDS[1])
    again.delete(IDS[1])
    assert [m.id for m in store.manifests()] == [IDS[2]]
    with pytest.raises(StoreError, match="no entry"):
        store.load(IDS[1])


def test_another_models_entries_are_not_seen(url: str) -> None:
    Store(url, FINGERPRINT).save(manifest(IDS[0], b"x"), b"x")
    assert Store(url, "0" * 64).manifests() == []


@pytest.mark.parametrize("bad", ["../../etc/passwd", "adapt-1", "", "adapt-" + "g" * 32])
def test_only_valid_ids_become_paths(url: str, bad: str) -> None:
    store = Store(url, FINGERPRINT)
    for touch in (store.load, store.delete, store.quarantine):
        with pytest.raises(StoreError, match="not the id of an entry"):
            touch(bad)


def damage_data(folder: str, fs) -> None:
    data = bytearray(fs.cat_file(f"{folder}/{DATA}"))
    data[50] ^= 1
    fs.pipe_file(f"{folder}/{DATA}", bytes(data))


def cut_data(folder: str, fs) -> None:
    fs.pipe_file(f"{folder}/{DATA}", fs.cat_file(f"{folder}/{DATA}")[:-1])


def lose_data(folder: str, fs) -> None:
    fs.rm_file(f"{folder}/{DATA}")


def change_owner(folder: str, fs) -> None:
    text = fs.cat_file(f"{folder}/{MANIFEST}").replace(b'"local"', b'"thief"')
    fs.pipe_file(f"{folder}/{MANIFEST}", text)


def cut_manifest(folder: str, fs) -> None:
    fs.pipe_file(f"{folder}/{MANIFEST}", fs.cat_file(f"{folder}/{MANIFEST}")[:-9])


def wrong_shape(folder: str, fs) -> None:
    fs.pipe_file(f"{folder}/{MANIFEST}", b"[1]")


def flat_settings(folder: str, fs) -> None:
    """Write settings as versions before 0.2.0 did, complete and signed."""
    described = json.loads(fs.cat_file(f"{folder}/{MANIFEST}"))["manifest"]
    described["config"] = {"objective": "refine", "prefix": "full", "steps": 3, "chunks": 8}
    text = json.dumps(described, sort_keys=True).encode()
    signed = {"manifest": described, "sha256": hashlib.sha256(text).hexdigest()}
    fs.pipe_file(f"{folder}/{MANIFEST}", json.dumps(signed).encode())


DAMAGES = [
    *(damage_data, cut_data, lose_data, change_owner, cut_manifest, wrong_shape),
    flat_settings,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_refused_and_quarantined(url: str, damage) -> None:
    store = Store(url, FINGERPRINT)
    store.save(manifest(IDS[0], b"x" * 100), b"x" * 100)
    store.save(manifest(IDS[1], b"y" * 100), b"y" * 100)
    damage(f"{store.root}/{IDS[0]}", store.fs)
    with pytest.raises(DamagedEntryError, match="quarantine"):
        store.load(IDS[0])
    assert [m.id for m in store.manifests()] == [IDS[1]]
    kept = store.fs.ls(f"{store.root}/{QUARANTINE}", detail=False)
    assert len(kept) == 1
    assert IDS[0] in kept[0]


def test_an_entry_of_another_version_is_explained_in_one_line(url: str) -> None:
    store = Store(url, FINGERPRINT)
    store.save(manifest(IDS[0], b"x"), b"x")
    flat_settings(f"{store.root}/{IDS[0]}", store.fs)
    with pytest.raises(DamagedEntryError, match="another version of refine-server") as refused:
        store.load(IDS[0])
    assert "adapt to the document again" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_foreign_entry_is_refused(url: str) -> None:
    store = Store(url, FINGERPRINT)
    store.save(manifest(IDS[0], b"x", fingerprint="0" * 64), b"x")
    store.save(manifest(IDS[1], b"x"), b"x")
    store.fs.mv(f"{store.root}/{IDS[1]}", f"{store.root}/{IDS[2]}", recursive=True)
    assert store.manifests() == []  # another model's entry, and one whose id does not match
    assert len(store.fs.ls(f"{store.root}/{QUARANTINE}", detail=False)) == 2


def test_an_entry_without_manifest_is_not_there_and_is_deleted_when_old(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri(), FINGERPRINT)
    folder = Path(store.root) / IDS[0]
    folder.mkdir(parents=True)
    (folder / DATA).write_bytes(b"half")
    assert store.manifests() == []
    assert folder.exists()  # it may be being written
    long_ago = time.time() - 2 * PARTIAL_SECONDS
    os.utime(folder / DATA, (long_ago, long_ago))
    assert store.manifests() == []
    assert not folder.exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path.as_uri(), FINGERPRINT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.save(manifest(IDS[0], b"x"), b"x")
    assert list(Path(store.root).iterdir()) == []


def test_a_missing_store_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    store = Store((tmp_path / "file").as_uri(), FINGERPRINT)
    with pytest.raises(StoreError, match="cannot write"):
        store.save(manifest(IDS[0], b"x"), b"x")
    with pytest.raises(StoreError, match="cannot open"):
        Store("nothing-known://x", FINGERPRINT)


WRITER = """
import sys, itertools
from tests_store import manifest
from refine_server.server.adaptations.store import Store
store = Store(sys.argv[1], "f" * 64)
for i in itertools.count():
    data = bytes([i % 251]) * (1 << 20)
    store.save(manifest(f"adapt-{i % 50:032x}", data), data)
    print(i, flush=True)
"""


@pytest.mark.parametrize("moment", [0.0, 0.011, 0.023, 0.037, 0.05])
def test_a_killed_writer_leaves_only_whole_entries(tmp_path: Path, moment: float) -> None:
    code = textwrap.dedent(WRITER).replace("from tests_store import manifest", "")
    helper = Path(__file__).read_text().split("def manifest")[1].split("@pytest.fixture")[0]
    imports = (
        "from refine_server.server.adaptations.store import Manifest, describe_data\n"
        "from refine_server.ttt.interface.config import AdaptConfig\nFINGERPRINT = 'f' * 64\n"
    )
    code = imports + "def manifest" + helper + code
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, tmp_path.as_uri()], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path.as_uri(), FINGERPRINT)
    found = store.manifests()
    assert len(found) >= 3
    for entry in found:
        _, data = store.load(entry.id)
        assert data == data[:1] * (1 << 20)
    assert not (Path(store.root) / QUARANTINE).exists()


def test_the_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri(), FINGERPRINT)
    store.save(manifest(IDS[0], b"x"), b"x")
    signed = json.loads((Path(store.root) / IDS[0] / MANIFEST).read_text())
    assert signed["manifest"]["config"]["optimizer"]["steps"] == 3
