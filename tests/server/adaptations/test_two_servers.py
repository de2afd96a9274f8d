"""Two servers on one store share their adaptations, and neither harms what the other uses."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.server.adaptations import registry, sharing, storage
from refine_server.server.adaptations.store.entries import ENTRIES, USED, Store
from refine_server.server.adaptations.store.leases import Leases
from support.fake_backend import FINGERPRINT, FakeBackend, Script

WaitFor = Callable[..., None]
Servers = tuple[TestClient, TestClient]

DOCUMENT = "alpha text"
STEPS = {"optimizer": {"steps": 3}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers look at each other more often than they would."""
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(registry, "CONFIRM_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "POLL_SECONDS", 0.02)


@pytest.fixture
def server(make_client: Callable[..., TestClient], tmp_path: Path) -> Callable[..., TestClient]:
    """Return a function that starts one more server on the store."""
    return lambda **options: make_client(store=tmp_path.as_uri(), **options)


@pytest.fixture
def servers(server: Callable[..., TestClient]) -> Servers:
    return server(), server()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path.as_uri(), FINGERPRINT)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Callable[[TestClient], None]:
    """Return a function that lets a server's leases get old, as if it had been killed."""
    renew, dead = Leases.write, set()

    def write(self: Leases, lease: Any) -> None:
        if lease.holder not in dead:
            renew(self, lease)

    def freeze(client: TestClient) -> None:
        dead.add(client.app.state.adaptations._sharing._holder)  # type: ignore[attr-defined]

    monkeypatch.setattr(Leases, "write", write)
    monkeypatch.setattr(sharing, "LEASE_SECONDS", 0.4)
    return freeze


def create(client: TestClient, document: str = DOCUMENT, **fields: Any) -> dict[str, Any]:
    made = client.post("/v1/adaptations", json={"document": document, "adapt": STEPS, **fields})
    assert made.status_code in (200, 202), made.text
    resource: dict[str, Any] = made.json()
    return resource


def end_of(client: TestClient, adaptation_id: str) -> dict[str, Any]:
    """Wait until an adaptation has ended; return it as the server shows it."""
    for _ in range(1000):
        resource: dict[str, Any] = client.get(f"/v1/adaptations/{adaptation_id}").json()
        if resource.get("status") not in ("queued", "adapting"):
            return resource
        time.sleep(0.01)
    raise AssertionError("it did not end")


def ready(client: TestClient, document: str = DOCUMENT, **fields: Any) -> str:
    resource = end_of(client, create(client, document, **fields)["id"])
    assert resource["status"] == "ready", resource
    identity: str = resource["id"]
    return identity


def ask(client: TestClient, adaptation_id: str) -> Any:
    return client.post("/v1/answers", json={"query": "who?", "adaptation": adaptation_id})


def status_of(client: TestClient, adaptation_id: str) -> int:
    return client.get(f"/v1/adaptations/{adaptation_id}").status_code


def ids(client: TestClient) -> list[str]:
    return [r["id"] for r in client.get("/v1/adaptations").json()["data"]]


# -- what is stored -------------------------------------------------------------------------


def test_each_shows_and_answers_from_what_the_other_has_made(
    servers: Servers, fake: FakeBackend
) -> None:
    ours, theirs = servers
    made = ready(ours)
    assert ask(theirs, made).json()["answer"] == "alpha"
    other = ready(theirs, "beta text")
    assert ours.get(f"/v1/adaptations/{other}").json()["status"] == "ready"
    assert set(ids(ours)) == set(ids(theirs)) == {made, other}
    assert fake.turns.count("alpha") == 3


def test_the_same_request_is_a_hit_on_the_other_server(servers: Servers, fake: FakeBackend) -> None:
    ours, theirs = servers
    made = ready(ours)
    assert end_of(theirs, made)["status"] == "ready"
    again = theirs.post("/v1/adaptations", json={"document": DOCUMENT, "adapt": STEPS})
    assert (again.status_code, again.json()["id"]) == (200, made)
    assert fake.turns.count("alpha") == 3
    assert "refine_adaptation_cache_hits_total 1.0" in theirs.get("/metrics").text


def test_what_one_deletes_is_gone_for_the_other(servers: Servers) -> None:
    ours, theirs = servers
    made = ready(ours)
    assert ask(theirs, made).is_success
    assert ours.delete(f"/v1/adaptations/{made}").is_success
    assert ask(theirs, made).status_code == 404
    assert status_of(theirs, made) == 404
    assert theirs.delete(f"/v1/adaptations/{made}").status_code == 404
    assert ids(theirs) == []
    again = ready(theirs)
    assert again != made
    assert ask(ours, again).is_success


def test_another_owner_learns_nothing_from_the_other_server(
    server: Callable[..., TestClient],
) -> None:
    keys = "alice:alice-alice-alice-1,bob:bob-bob-bob-bob-bob-1"
    ours, theirs = server(api_keys=keys), server(api_keys=keys)
    ours.headers["authorization"] = "Bearer alice-alice-alice-1"
    made = ready(ours)
    theirs.headers["authorization"] = "Bearer bob-bob-bob-bob-bob-1"
    assert status_of(theirs, made) == 404
    assert ask(theirs, made).status_code == 404
    assert theirs.delete(f"/v1/adaptations/{made}").status_code == 404
    assert ready(theirs) != made
    theirs.headers["authorization"] = "Bearer alice-alice-alice-1"
    assert ask(theirs, made).is_success


# -- what is being made ---------------------------------------------------------------------


def test_the_other_joins_what_one_makes(servers: Servers, fake: FakeBackend) -> None:
    ours, theirs = servers
    fake.hold("held text")
    made = create(ours, "held text")
    joined = create(theirs, "held text")
    assert joined["id"] == made["id"]
    assert joined["status"] == "adapting"
    assert ids(theirs) == [made["id"]]
    fake.gate.set()
    assert len(end_of(theirs, made["id"])["steps"]) == 3
    assert ask(theirs, made["id"]).json()["answer"] == "held"
    assert fake.closed.count("held") == 1


def test_an_adaptation_can_be_followed_on_the_other_server(
    servers: Servers, fake: FakeBackend
) -> None:
    ours, theirs = servers
    made = create(ours, fake.hold("held text"))["id"]
    assert theirs.get(f"/v1/adaptations/{made}").json()["status"] == "adapting"
    threading.Timer(0.1, fake.gate.set).start()
    text = theirs.get(f"/v1/adaptations/{made}/events").text
    assert text.count("event: adaptation.step") == 3
    assert "event: adaptation.ready" in text


def test_requests_at_the_same_moment_make_one_adaptation(
    servers: Servers, store: Store, fake: FakeBackend
) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: create(servers[i % 2])["id"], range(8)))
    assert len(set(made)) == 1
    assert [end_of(client, made[0])["status"] for client in servers] == ["ready", "ready"]
    assert fake.closed.count("alpha") == 1
    assert len(store.manifests(store.entries())) == 1


def test_deleting_through_the_other_server_cancels_what_one_makes(
    servers: Servers, fake: FakeBackend, wait_for: WaitFor
) -> None:
    ours, theirs = servers
    made = create(ours, fake.hold("held text"))["id"]
    create(theirs, "held text")
    assert theirs.delete(f"/v1/adaptations/{made}").is_success
    wait_for(lambda: status_of(ours, made) == 404)
    fake.gate.set()
    wait_for(lambda: fake.closed == ["held"])
    assert fake.turns == ["held"]
    assert ids(ours) == ids(theirs) == []
    assert ready(theirs, "held text") != made


def test_deleting_where_it_is_made_ends_it_for_the_other(
    servers: Servers, fake: FakeBackend, wait_for: WaitFor
) -> None:
    ours, theirs = servers
    made = create(ours, fake.hold("held text"))["id"]
    create(theirs, "held text")
    assert ours.delete(f"/v1/adaptations/{made}").is_success
    wait_for(lambda: status_of(theirs, made) == 404)
    fake.gate.set()


def test_a_failure_is_told_on_both_and_can_be_retried(servers: Servers, fake: FakeBackend) -> None:
    ours, theirs = servers

    def fail_after_the_gate() -> None:
        assert fake.gate.wait(20)
        raise RuntimeError("secret internals")

    fake.script("held text", Script(step=fail_after_the_gate))
    made = create(ours, "held text")["id"]
    assert create(theirs, "held text")["id"] == made
    fake.gate.set()
    for client in servers:
        failed = end_of(client, made)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "internal_error")
    assert create(theirs, "held text")["id"] != made


def test_what_is_refused_before_it_begins_leaves_nothing(
    servers: Servers, store: Store, wait_for: WaitFor
) -> None:
    ours, theirs = servers
    for client in (ours, theirs):
        body = {"document": "w " * 400, "adapt": STEPS}
        assert client.post("/v1/adaptations", json=body).status_code == 413
    wait_for(lambda: store.files.find() == [])


def test_the_other_takes_over_from_a_server_that_stopped(
    servers: Servers, frozen: Callable[[TestClient], None], fake: FakeBackend, store: Store
) -> None:
    ours, theirs = servers
    made = create(ours, fake.hold("held text"))["id"]
    create(theirs, "held text")
    frozen(ours)
    assert store.manifests(store.entries()) == []
    threading.Timer(1.0, fake.gate.set).start()
    assert end_of(theirs, made)["status"] == "ready"
    # The server that was thought dead ends as well, and both have one entry.
    assert end_of(ours, made)["status"] == "ready"
    assert fake.closed.count("held") == 2
    assert [m.id for m in store.manifests(store.entries())] == [made]
    assert {ask(client, made).json()["answer"] for client in servers} == {"held"}
    assert len(store.files.find(f"{ENTRIES}/{made}")) <= 3  # no second file of tensors


def test_who_only_has_the_id_is_told_that_its_server_stopped(
    servers: Servers, frozen: Callable[[TestClient], None], fake: FakeBackend
) -> None:
    ours, theirs = servers
    made = create(ours, fake.hold("held text"))["id"]
    frozen(ours)
    failed = end_of(theirs, made)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "adaptation_abandoned")
    assert "Send the document again" in failed["error"]["message"]
    fake.gate.set()


# -- time to live and memory ----------------------------------------------------------------


def test_what_the_other_uses_does_not_expire(
    servers: Servers, store: Store, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor
) -> None:
    monkeypatch.setattr(storage, "EXPIRY_GRACE_SECONDS", 0.5)
    ours, theirs = servers
    made = ready(ours, ttl_seconds=2.0)
    end = time.monotonic() + 4.0
    while time.monotonic() < end:
        assert ask(theirs, made).is_success
        time.sleep(0.05)
    assert status_of(ours, made) == 200
    wait_for(lambda: store.entries() == [])
    assert [status_of(client, made) for client in servers] == [404, 404]


@pytest.mark.usefixtures("all_spare")
def test_what_one_evicts_from_memory_stays_for_both(server: Callable[..., TestClient]) -> None:
    small, large = server(memory_bytes=4 * 5000), server()
    made = [ready(small, f"{name} x") for name in ("alpha", "beta", "gamma")]
    for client in (large, small):
        answers = [ask(client, identity).json()["answer"] for identity in made]
        assert answers == ["alpha", "beta", "gamma"]


def test_what_one_deletes_for_room_is_not_what_the_other_uses(
    server: Callable[..., TestClient], wait_for: WaitFor, tmp_path: Path
) -> None:
    one, other = server(store_bytes=9000), server()  # two documents of 4,000 bytes and some
    made = [ready(one, f"{name} x") for name in ("alpha", "beta")]
    assert ask(other, made[0]).is_success
    wait_for(lambda: list(tmp_path.rglob(f"{made[0]}/{USED}")))
    third = ready(one, "gamma x")
    assert {path.parent.name for path in tmp_path.rglob("manifest.json")} == {made[0], third}
    assert ask(other, made[0]).json()["answer"] == "alpha"


def test_a_restarted_server_finds_what_the_other_made_meanwhile(
    server: Callable[..., TestClient],
) -> None:
    made = ready(server())
    assert ids(server()) == [made]
