"""About a minute of what ``bench fuzz`` sends for ten: no input causes a server error."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from refine_server.benchmarks.robustness.fuzz.bench import Fuzzer
from refine_server.benchmarks.robustness.fuzz.inputs import (
    BATCH_FILE,
    BODIES,
    REQUESTS,
    TEXT_FILE,
)
from refine_server.benchmarks.robustness.fuzz.values import changed
from refine_server.server.api.batch_requests import ENDPOINTS

KEY = "alice-alice-alice-1"


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_input_causes_a_server_error(live: Callable[..., str], kind: str) -> None:
    fuzzer = Fuzzer(live(max_tokens=8, client_timeout_seconds=2))
    inputs = 40 if kind == "batches" else 400
    fuzzer.run(kind, inputs, 0)
    assert fuzzer.outcome.figures()["inputs"] == inputs
    assert fuzzer.outcome.failures == []
    # No route is tested by inputs alone that are refused before any work. Few inputs of the whole
    # contract make a batch; those of the kind "batches" make one of every file.
    if kind == "contract":
        assert set(fuzzer.outcome.accepted) >= set(dict(BODIES)) - {"/v1/batches"}
    if kind == "batches":
        assert fuzzer.outcome.accepted["/v1/files"] > 0


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_input_to_the_real_model_causes_a_server_error(tiny_url: str, kind: str) -> None:
    fuzzer = Fuzzer(tiny_url)
    fuzzer.run(kind, 10 if kind == "batches" else 150, 1)
    assert fuzzer.outcome.failures == []


def test_no_head_passes_without_a_key(live: Callable[..., str]) -> None:
    fuzzer = Fuzzer(live(api_keys=f"alice:{KEY}", client_timeout_seconds=2))
    fuzzer.run("contract", 50, 2)
    assert set(fuzzer.outcome.statuses) == {"401"}
    fuzzer.run("heads", 100, 2)
    assert fuzzer.outcome.failures == []


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_every_input_begins_as_a_valid_request(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    for placeholder, purpose in ((TEXT_FILE, "user_data"), (BATCH_FILE, "batch")):
        form = {"file": ("a", b"a text")}
        made = client.post("/v1/files", files=form, data={"purpose": purpose}).json()
        body = json.loads(json.dumps(body).replace(placeholder, made["id"]))
    response = client.post(path, json=body)
    # The scripted model has no attention and no forms, and there is no such adaptation.
    assert response.is_success or response.json()["error"]["param"] in (
        "evidence.by", "adaptation", "adapt.on.kind", "evidence", "text.format.schema",
        "response_format.json_schema.schema", "structured_outputs.regex", "guided_choice",
    ), response.text  # fmt: skip


def test_no_line_of_a_batch_causes_a_server_error(client: TestClient) -> None:
    """Every line of a batch is answered or refused, and none holds up the others."""
    lines: dict[str, list[bytes]] = {path: [] for path in ENDPOINTS}

    @settings(max_examples=300, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(st.sampled_from([case for case in BODIES if case[0] in ENDPOINTS]), st.data())
    def draw(case: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
        path, valid = case
        whole = {"custom_id": f"r{len(lines[path])}", "method": "POST", "url": path, "body": valid}
        lines[path].append(json.dumps(data.draw(changed(whole))).encode())

    draw()
    for path, sent in lines.items():
        form = {"file": ("a", b"\n".join(sent))}
        made = client.post("/v1/files", files=form, data={"purpose": "batch"}).json()
        body = {"input_file_id": made["id"], "endpoint": path, "completion_window": "24h"}
        batch = client.post("/v1/batches", json=body).json()
        end = time.monotonic() + 120
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            assert time.monotonic() < end
            time.sleep(0.05)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        assert batch["status"] == "completed", batch
        counts = batch["request_counts"]
        assert counts["total"] == counts["completed"] + counts["failed"] == len(sent)
        failed = client.get(f"/v1/files/{batch['error_file_id']}/content").content
        for line in map(json.loads, failed.splitlines()):
            response = line["response"]
            assert response is None or response["status_code"] < 500, line
