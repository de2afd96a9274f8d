"""The store keeps within ``--store-bytes``: the adaptations that were used last stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

MakeClient = Callable[..., TestClient]
WaitFor = Callable[..., None]
TWO_DOCUMENTS = 9000
"""Bytes; one of the scripted model takes somewhat more than 4,000."""


def ready(client: TestClient, document: str, wait_for: WaitFor) -> dict[str, Any]:
    made = client.post("/v1/adaptations", json={"document": document}).json()
    url = f"/v1/adaptations/{made['id']}"
    wait_for(lambda: client.get(url).json()["status"] == "ready")
    resource: dict[str, Any] = client.get(url).json()
    return resource


def stored(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.rglob("manifest.json")}


def metric(client: TestClient, name: str) -> float:
    lines = (line.split() for line in client.get("/metrics").text.splitlines())
    [value] = [fields[-1] for fields in lines if fields[0] == name]
    return float(value)


def test_the_least_recently_used_is_deleted_from_the_store(
    make_client: MakeClient, wait_for: WaitFor, tmp_path: Path
) -> None:
    client = make_client(store=tmp_path.as_uri(), store_bytes=TWO_DOCUMENTS)
    first, second = (ready(client, f"{name} x", wait_for)["id"] for name in ("alpha", "beta"))
    assert client.post("/v1/answers", json={"query": "q", "adaptation": first}).is_success
    third = ready(client, "gamma x", wait_for)["id"]
    assert stored(tmp_path) == {first, third}
    assert client.get(f"/v1/adaptations/{second}").status_code == 404
    assert metric(client, "refine_store_evictions_total") == 1
    sizes = [path.stat().st_size for path in tmp_path.rglob("document-*.safetensors")]
    assert TWO_DOCUMENTS / 2 < sum(sizes) <= TWO_DOCUMENTS


def test_a_restarted_server_counts_what_it_finds(
    make_client: MakeClient, wait_for: WaitFor, tmp_path: Path
) -> None:
    options = {"store": tmp_path.as_uri(), "store_bytes": TWO_DOCUMENTS}
    before = make_client(**options)
    made = [ready(before, f"{name} x", wait_for)["id"] for name in ("alpha", "beta")]
    after = make_client(**options)
    assert after.post("/v1/answers", json={"query": "q", "adaptation": made[1]}).is_success
    third = ready(after, "gamma x", wait_for)["id"]
    assert stored(tmp_path) == {made[1], third}


def test_what_is_larger_than_the_budget_stays_in_memory_only(
    make_client: MakeClient, wait_for: WaitFor, tmp_path: Path
) -> None:
    client = make_client(store=tmp_path.as_uri(), store_bytes=1000)
    made = ready(client, "alpha x", wait_for)
    assert made["stored"] is False
    assert stored(tmp_path) == set()
    assert client.post("/v1/answers", json={"query": "q", "adaptation": made["id"]}).is_success
