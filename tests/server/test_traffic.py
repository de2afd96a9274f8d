"""The reliability bench: its clients and its check of the store find faults, and only faults."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refine_server.benchmarks.robustness.reliability.ledger import (
    OWNERS,
    Kept,
    Subject,
    Tally,
    make_subjects,
)
from refine_server.benchmarks.robustness.reliability.store import damaged_entries, entries
from refine_server.benchmarks.robustness.reliability.traffic import Traffic

KEYS = {owner: f"{owner}-0123456789abcdef" for owner in OWNERS}
SECONDS = 2.0


@pytest.fixture
def url(live: Callable[..., str], tmp_path: Path, all_spare: None) -> str:
    keys = ",".join(f"{owner}:{key}" for owner, key in KEYS.items())
    store = (tmp_path / "store").as_uri()
    return live(api_keys=keys, store=store, memory_bytes=4 * 20_000, max_queue=2)


def subjects() -> list[Subject]:
    """Make subjects; the scripted model answers with the query or the document's first word."""
    words = enumerate(("one", "two"))
    return [
        Subject(owner, n, word, {"optimizer": {"steps": 2}}, (word,))
        for n, word in words
        for owner in OWNERS
    ]


def act(url: str, expected: dict[tuple[int, str], str], kept: list[Kept]) -> Tally:
    tally, up = Tally(), threading.Event()
    up.set()
    end = time.monotonic() + SECONDS
    clients = [Traffic(url, KEYS, kept, expected, tally, up, seed) for seed in range(3)]
    threads = [
        threading.Thread(target=client.run, args=(lambda: time.monotonic() > end,))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def right_answers(answer: Callable[[str], str]) -> dict[tuple[int, str], str]:
    return {(s.number, query): answer(query) for s in subjects() for query in s.queries}


def test_a_correct_server_passes(url: str, tmp_path: Path) -> None:
    kept = [Kept(subject) for subject in subjects()]
    tally = act(url, right_answers(lambda query: query), kept)
    counts = tally.counts
    for what in ("wrong", "lost", "leaked", "errors_5xx", "interrupted"):
        assert counts[what] == 0, tally.notes
    for what in ("checked", "adapted", "cancelled", "hung_up"):
        assert counts[what] > 0, counts
    assert damaged_entries(tmp_path / "store") == []
    assert {k.id for k in kept if k.is_stored} <= entries(tmp_path / "store")


def test_wrong_answers_and_lost_adaptations_are_found(url: str, fake: Any) -> None:
    kept = [Kept(subject, id=f"adapt-{n:032x}") for n, subject in enumerate(subjects())]
    tally = act(url, right_answers(lambda query: query.upper()), kept)
    assert tally.counts["wrong"] > 0
    assert tally.counts["lost"] > 0


def test_failures_of_the_server_are_found(url: str, fake: Any) -> None:
    kept = [Kept(replace(subject, document=fake.fail("crash"))) for subject in subjects()]
    tally = act(url, right_answers(lambda query: query), kept)
    assert tally.counts["errors_5xx"] > 0


def test_a_server_that_is_gone_is_a_loss_unless_it_was_taken_down(url: str) -> None:
    tally, up = Tally(), threading.Event()
    client = Traffic("http://127.0.0.1:9", KEYS, [Kept(subjects()[0])], {}, tally, up, 0)
    up.set()
    calls = iter([False, True])
    client.run(lambda: next(calls))
    assert tally.counts["lost"] + tally.counts["interrupted"] == 1


def test_damaged_entries_are_found(url: str, tmp_path: Path) -> None:
    act(url, right_answers(lambda query: query), [Kept(subject) for subject in subjects()])
    store = tmp_path / "store"
    assert damaged_entries(store) == []
    first, *_ = [m for m in store.rglob("manifest.json") if "quarantine" not in m.parts]
    [data] = first.parent.glob("*.safetensors")
    whole = data.read_bytes()
    for broken in (whole[:-1], whole[:-1] + b"\x00" if whole[-1] else whole[:-1] + b"\x01"):
        data.write_bytes(broken)
        assert "the data's checksum is wrong" in damaged_entries(store)[0]
    data.unlink()
    assert "cannot be read" in damaged_entries(store)[0]
    data.write_bytes(whole)
    signed = json.loads(first.read_text())
    signed["manifest"]["owner"] = "eve"
    first.write_text(json.dumps(signed))
    assert "the manifest's checksum is wrong" in damaged_entries(store)[0]
    first.unlink()
    assert damaged_entries(store) == []  # it is not an entry any more


def test_deleting_is_exclusive() -> None:
    kept = Kept(subjects()[0])
    with kept.shared(), kept.exclusive() as is_free:
        assert not is_free
    with kept.exclusive() as is_free:
        assert is_free
        with kept.exclusive() as again:
            assert not again
    with kept.shared(), kept.shared():
        pass


def test_subjects_are_the_same_every_time() -> None:
    made = make_subjects(3, seed=1)
    assert made == make_subjects(3, seed=1)
    assert {s.owner for s in made} == set(OWNERS)
    assert len({(s.number, s.document) for s in made}) == 3
