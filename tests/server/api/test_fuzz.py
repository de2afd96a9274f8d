"""About a minute of what ``bench fuzz`` sends for ten: no input causes a server error."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from refine_server.benchmarks.robustness.fuzz.bench import Fuzzer
from refine_server.benchmarks.robustness.fuzz.inputs import BODIES, REQUESTS

KEY = "alice-alice-alice-1"


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_input_causes_a_server_error(live: Callable[..., str], kind: str) -> None:
    fuzzer = Fuzzer(live(max_tokens=8, client_timeout_seconds=2))
    fuzzer.run(kind, 400, 0)
    assert fuzzer.outcome.figures()["inputs"] == 400
    assert fuzzer.outcome.failures == []


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_input_to_the_real_model_causes_a_server_error(tiny_url: str, kind: str) -> None:
    fuzzer = Fuzzer(tiny_url)
    fuzzer.run(kind, 150, 1)
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
    response = client.post(path, json=body)
    # The scripted model has no attention, and there is no such adaptation.
    assert response.is_success or response.json()["error"]["param"] in (
        "evidence.by", "adaptation", "adapt.on.kind", "evidence",
    ), response.text  # fmt: skip
