"""An operator sees what a store has, and looking changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from refine_server.server.adaptations.store.entries import ENTRIES, Store
from support.command_line import run, run_failing
from support.stores import FINGERPRINT, IDS, change_manifest, save

TTL = 30 * 24 * 3600.0
NEVER = 9e9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path.as_uri(), FINGERPRINT)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return tmp_path.as_uri()


def listed(*arguments: str) -> list[dict[str, Any]]:
    shown = run("store", *arguments, "--json")
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return found


def spoil(store: Store, entry_id: str) -> None:
    path = f"{ENTRIES}/{entry_id}/{store.manifest(entry_id).data_file}"
    store.files.write(path, b"spoilt")


def test_all_entries_are_listed_with_their_state(store: Store, url: str) -> None:
    save(store, IDS[0], expires_at=NEVER, owner="alice")
    save(store, IDS[1])
    save(store, IDS[2])
    change_manifest(store, IDS[2], lambda signed: signed.update(version=99))
    store.files.write(f"{ENTRIES}/{IDS[3]}/document.safetensors", b"half")
    save(store, IDS[4])
    store.files.write(f"{ENTRIES}/{IDS[4]}/manifest.json", b"{")
    other = Store(url, "0" * 64)
    save(other, IDS[5], fingerprint="0" * 64)
    before = store.files.find()
    found = listed("list", "--store", url)
    assert [(e["model"][0], e["id"], e["state"]) for e in found] == [
        ("0", IDS[5], "expired"),
        ("f", IDS[0], "ready"),
        ("f", IDS[1], "expired"),
        ("f", IDS[2], "unreadable"),
        ("f", IDS[3], "incomplete"),
        ("f", IDS[4], "damaged"),
    ]
    assert (found[1]["owner"], found[1]["expires_at"]) == ("alice", NEVER)
    assert "newer version" in found[3]["problem"]
    assert store.files.find() == before
    text = run("store", "list", env={"REFINE_STORE": url}).stdout
    assert f"{IDS[3]}  incomplete" in text
    assert f"6 entries, {sum(e['nbytes'] for e in found)} bytes" in text


def test_verify_reads_the_data_and_fails_if_any_is_damaged(store: Store, url: str) -> None:
    save(store, IDS[0])
    assert run("store", "verify", "--store", url).exit_code == 0
    spoil(store, IDS[0])
    assert listed("list", "--store", url)[0]["state"] == "expired"
    before = store.files.find()
    shown = run("store", "verify", "--store", url)
    assert shown.exit_code == 1
    assert "does not match its checksum" in shown.stdout
    assert store.files.find() == before


def test_the_quarantine_is_listed_and_emptied(store: Store, url: str) -> None:
    save(store, IDS[0])
    spoil(store, IDS[0])
    with pytest.raises(Exception, match="quarantine"):
        store.load(IDS[0])
    [entry] = listed("quarantine", "--store", url)
    assert entry["id"] == IDS[0]
    assert "does not match its checksum" in entry["reason"]
    assert IDS[0] in run("store", "quarantine", "--store", url, "--empty").stdout
    assert listed("quarantine", "--store", url) == []


def test_a_store_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    run_failing(1, "cannot use foo://", "store", "list", "--store", "foo://x")
    (tmp_path / "file").write_text("no folder")
    run_failing(1, "cannot list", "store", "list", "--store", (tmp_path / "file" / "x").as_uri())
