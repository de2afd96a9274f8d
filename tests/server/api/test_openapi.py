"""Requests generated from the schema, valid and invalid, against an app on a scripted model."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from refine_server.benchmarks.robustness.fuzz.values import changed

KEY = "alice-alice-alice-1"


@pytest.mark.parametrize(
    ("mode", "headers"),
    [
        (GenerationMode.POSITIVE, {}),
        (GenerationMode.POSITIVE, {"authorization": f"Bearer {KEY}"}),
        (GenerationMode.NEGATIVE, {"x-api-key": KEY}),
    ],
)
def test_no_request_causes_a_server_error(
    live: Callable[..., str], mode: GenerationMode, headers: dict[str, str]
) -> None:
    keys = {"api_keys": f"alice:{KEY}"} if headers else {}
    url = live(max_tokens=16, **keys)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    operations = [result.ok() for result in schema.get_all_operations()]
    paths = {"/v1/answers", "/v1/adaptations", "/v1/models", "/metrics", "/health/verify"}
    paths |= {"/v1/responses", "/v1/files", "/v1/files/{file_id}/content", "/v1/batches"}
    paths |= {"/v1/documents", "/v1/documents/{file_id}"}
    assert {op.path for op in operations} >= paths
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing in it can be wrong
        _call(operation, mode, headers)


def _call(operation: Any, mode: GenerationMode, headers: dict[str, str]) -> None:
    @settings(
        max_examples=30 if operation.method == "post" else 3,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(st.data())
    def check(data: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        response = case.call(headers=headers)
        asked = isinstance(case.body, dict) and "timeout_seconds" in case.body
        if response.status_code == 504 and asked:
            return  # it got what it asked for
        case.validate_response(
            response, checks=[not_a_server_error, response_schema_conformance], headers=headers
        )

    check()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_change_of_a_generated_body_causes_a_server_error(
    live: Callable[..., str], mode: GenerationMode
) -> None:
    """With invalid Unicode, extreme numbers, unknown tokens, huge texts and nulls in any place."""
    url = live(max_tokens=16)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    with httpx.Client(base_url=url, headers={"content-type": "application/json"}) as client:
        for operation in operations:
            if operation.body:
                _send_changed(client, operation, mode)


def _send_changed(client: httpx.Client, operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.data())
    def check(data: Any) -> None:
        generated = data.draw(operation.as_strategy(generation_mode=mode)).body
        if isinstance(generated, bytes):
            return  # no JSON
        body = data.draw(changed(generated))
        response = client.post(operation.path, content=json.dumps(body))
        if response.status_code == 504 and "timeout_seconds" in body:
            return  # it got what it asked for
        assert response.status_code < 500, (body, response.text)

    check()
