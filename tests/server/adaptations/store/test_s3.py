"""A store in an object store: the same promises, over the S3 API, with its faults."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3fs import S3FileSystem
from starlette.testclient import TestClient

from refine_server.server.adaptations import registry, sharing
from refine_server.server.adaptations.store.entries import ENTRIES, Store
from refine_server.server.adaptations.store.errors import MissingEntryError, StoreError
from refine_server.server.adaptations.store.files import Files
from support.fake_backend import FakeBackend
from support.s3 import FaultyS3, serving_s3
from support.stores import FINGERPRINT, IDS, manifest, save

WaitFor = Callable[..., None]


@pytest.fixture(scope="module")
def object_store() -> Iterator[FaultyS3]:
    with serving_s3() as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        yield store
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(object_store: FaultyS3) -> Iterator[FaultyS3]:
    object_store.heal()
    yield object_store
    object_store.heal()


@pytest.fixture
def url(s3: FaultyS3) -> str:
    bucket = f"bucket-{secrets.token_hex(4)}"
    Files("s3://").fs.mkdir(bucket)
    return f"s3://{bucket}/prefix"


@pytest.fixture
def impatient(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a request that fails be sent no second time."""
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # read by new file systems
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def test_entries_are_saved_loaded_listed_and_deleted(url: str) -> None:
    ours, theirs = Store(url, FINGERPRINT), Store(url, FINGERPRINT)
    assert ours.entries() == []
    written = save(ours, IDS[0], b"x" * 1000)
    assert theirs.load(IDS[0]) == (written, b"x" * 1000)
    assert not theirs.save(manifest(IDS[0], b"late"), b"late")
    theirs.touch(IDS[0], 105.5)
    assert ours.expires_at(written) == 106.5
    assert [e.id for e in ours.entries() if e.is_complete] == [IDS[0]]
    ours.delete(IDS[0])
    assert not theirs.exists(IDS[0])
    with pytest.raises(MissingEntryError):
        theirs.load(IDS[0])
    assert theirs.files.find() == []


def test_one_of_several_creates_a_file(url: str) -> None:
    files = Files(url)
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda i: files.create("a/b", str(i).encode()), range(4)))
    assert created.count(True) == 1
    assert files.read("a/b") == str(created.index(True)).encode()
    files.probe()


def test_a_damaged_entry_goes_into_quarantine(url: str) -> None:
    store = Store(url, FINGERPRINT)
    written = save(store, IDS[0])
    store.files.write(f"{ENTRIES}/{IDS[0]}/{written.data_file}", b"spoilt")
    with pytest.raises(StoreError, match="it was moved into quarantine"):
        store.load(IDS[0])
    assert not store.exists(IDS[0])
    assert [e.id for e in store.quarantine.entries()] == [IDS[0]]


# -- faults ---------------------------------------------------------------------------------


def test_a_store_that_asks_to_slow_down_is_asked_again(s3: FaultyS3, url: str) -> None:
    store = Store(url, FINGERPRINT)
    s3.failing = 1
    save(store, IDS[0])
    s3.failing = 1
    assert store.load(IDS[0])[1] == b"x" * 100


def test_a_torn_upload_is_no_entry(s3: FaultyS3, url: str) -> None:
    store = Store(url, FINGERPRINT)
    s3.tears_uploads = True
    with pytest.raises(StoreError, match="is cut off"):
        save(store, IDS[0])
    s3.heal()
    assert store.files.find() == []
    save(store, IDS[0])


def test_a_store_that_fails_is_an_error_and_no_loss(
    s3: FaultyS3, impatient: None, url: str
) -> None:
    store = Store(url, FINGERPRINT)
    written = save(store, IDS[0])
    s3.failing = 10**6
    for use in (store.entries, lambda: store.load(IDS[0]), lambda: save(store, IDS[1])):
        with pytest.raises(StoreError):
            use()
    s3.heal()
    assert store.load(IDS[0])[0] == written
    assert store.quarantine.entries() == []


def test_a_bucket_that_does_not_exist_is_named(s3: FaultyS3) -> None:
    with pytest.raises(StoreError, match="bucket does not exist"):
        Files("s3://no-such-bucket/x").probe()


# -- servers --------------------------------------------------------------------------------


@pytest.fixture
def servers(
    url: str, make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> tuple[TestClient, TestClient]:
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.2)
    monkeypatch.setattr(registry, "CONFIRM_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "POLL_SECONDS", 0.05)
    return make_client(store=url), make_client(store=url)


def ready(client: TestClient, document: str, wait_for: WaitFor) -> dict[str, Any]:
    made = client.post("/v1/adaptations", json={"document": document}).json()["id"]
    resource: dict[str, Any] = {}

    def has_ended() -> bool:
        resource.update(client.get(f"/v1/adaptations/{made}").json())
        return resource["status"] == "ready"

    wait_for(has_ended)
    return resource


def ask(client: TestClient, adaptation_id: str) -> Any:
    return client.post("/v1/answers", json={"query": "who?", "adaptation": adaptation_id})


def test_two_servers_share_a_bucket(
    servers: tuple[TestClient, TestClient], fake: FakeBackend, wait_for: WaitFor
) -> None:
    ours, theirs = servers
    made = ready(ours, "alpha text", wait_for)["id"]
    assert ready(theirs, "alpha text", wait_for)["id"] == made
    assert ask(theirs, made).json()["answer"] == "alpha"
    assert fake.closed.count("alpha") == 1
    assert ours.delete(f"/v1/adaptations/{made}").is_success
    assert ask(theirs, made).status_code == 404


def test_listings_that_lag_behind_hide_nothing_that_is_asked_for(
    s3: FaultyS3, servers: tuple[TestClient, TestClient], wait_for: WaitFor
) -> None:
    ours, theirs = servers
    s3.lags = True
    made = ready(ours, "alpha text", wait_for)["id"]
    other = ready(theirs, "beta text", wait_for)["id"]
    for client in servers:
        listed = client.get("/v1/adaptations").json()["data"]  # compares with the listing
        assert listed
        assert [ask(client, i).json()["answer"] for i in (made, other)] == ["alpha", "beta"]
    assert ours.delete(f"/v1/adaptations/{made}").is_success
    assert ask(theirs, made).status_code == 404
    assert [r["id"] for r in ours.get("/v1/adaptations").json()["data"]] == [other]


def test_a_slow_store_delays_nothing_that_is_in_memory(
    s3: FaultyS3, servers: tuple[TestClient, TestClient], wait_for: WaitFor
) -> None:
    ours, theirs = servers
    made = ready(ours, "alpha text", wait_for)["id"]
    s3.seconds = 0.1
    assert ask(theirs, made).json()["answer"] == "alpha"
    assert ready(theirs, "beta text", wait_for)["stored"]


def test_a_lost_store_turns_readiness_and_fails_no_answer_from_memory(
    s3: FaultyS3,
    impatient: None,
    servers: tuple[TestClient, TestClient],
    wait_for: WaitFor,
) -> None:
    ours, theirs = servers
    made = ready(ours, "alpha text", wait_for)["id"]
    s3.failing = 10**6
    wait_for(lambda: ours.get("/health/ready").status_code == 503, 20)
    assert ours.get("/health/ready").json()["error"]["code"] == "store_unavailable"
    assert "refine_store_up 0.0" in ours.get("/metrics").text
    assert ask(ours, made).json()["answer"] == "alpha"
    unsaved = ready(ours, "beta text", wait_for)
    assert not unsaved["stored"]
    assert ask(ours, unsaved["id"]).json()["answer"] == "beta"
    wait_for(lambda: theirs.get("/health/ready").status_code == 503, 20)
    for reply in (ask(theirs, unsaved["id"]), ours.delete(f"/v1/adaptations/{made}")):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    s3.heal()
    wait_for(lambda: ours.get("/health/ready").is_success, 20)
    wait_for(lambda: theirs.get("/health/ready").is_success, 20)
    # What could not be stored is stored now, so that the other server has it, too.
    wait_for(lambda: ours.get(f"/v1/adaptations/{unsaved['id']}").json()["stored"], 20)
    assert ask(theirs, unsaved["id"]).json()["answer"] == "beta"
    metrics = ours.get("/metrics").text
    assert 'refine_store_entries{state="ready"}' in metrics
    assert "refine_store_bytes" in metrics
