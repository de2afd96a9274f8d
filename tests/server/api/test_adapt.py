"""The ``adapt`` object on every route: examples, groups, and the new places of former fields."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from refine_server.server.api.adaptations_schema import EXAMPLES as ADAPTATIONS
from refine_server.server.api.adaptations_schema import AdaptationBody
from refine_server.server.api.answers_schema import EXAMPLES as ANSWERS
from refine_server.server.api.answers_schema import AnswerBody
from refine_server.server.http.moved import MOVED, REMOVED
from refine_server.ttt.interface.config import AdaptConfig

FORMER = {
    "prefix": "local",
    "ntp_on": "document",
    "spans_as": "answer",
    "span_tokens": 32,
    "selection": "query",
    "chunks": 8,
    "rollouts": 2,
    "rollout_tokens": 5,
    "rollout_temperature": 1.0,
    "demonstration": True,
    "reward": "exact",
    "grpo_coef": 0.4,
    "ntp_coef": 1.0,
    "kl_coef": 0.0,
    "steps": 8,
    "learning_rate": 0.006,
    "max_grad_norm": 1.0,
    "max_seconds": 60.0,
    "targets": "all",
    "rank": 8,
}
"""Fields of ``adapt`` before version 0.2.0, each with a value that it could have."""

PLACES = MOVED["adapt"]
ROUTES: dict[str, Callable[[dict[str, Any] | None], dict[str, Any]]] = {
    "/v1/answers": lambda adapt: {"document": "a b", "query": "who", "adapt": adapt},
    "/v1/adaptations": lambda adapt: {"document": "a b", "adapt": adapt},
    "/v1/completions": lambda adapt: {
        "prompt": "x",
        "ttt": {"document": "a b", "adapt": adapt},
    },
    "/v1/chat/completions": lambda adapt: {
        "messages": [{"role": "user", "content": "x"}],
        "ttt": {"document": "a b", "adapt": adapt},
    },
}


def refusal(client: TestClient, path: str, adapt: dict[str, Any] | None) -> dict[str, str]:
    response = client.post(path, json=ROUTES[path](adapt))
    assert response.status_code == 422
    error: dict[str, str] = response.json()["error"]
    return error


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", FORMER)
def test_a_former_field_is_refused_with_its_new_place(
    client: TestClient, path: str, name: str
) -> None:
    above = "ttt.adapt" if "completions" in path else "adapt"
    error = refusal(client, path, {name: FORMER[name]})
    assert error["param"] == f"{above}.{name}"
    assert error["message"] == f"{above}.{name}: moved to {above}.{PLACES[name]}"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("name", "value"), [("clip_ratio", 0.2), ("optimizer", "sgd")])
def test_a_former_field_that_has_no_place_is_said_to_be_removed(
    client: TestClient, path: str, name: str, value: object
) -> None:
    above = "ttt.adapt" if "completions" in path else "adapt"
    error = refusal(client, path, {name: value})
    assert error["param"] == f"{above}.{name}"
    assert error["message"] == f"{above}.{name}: {REMOVED[name]}"
    assert "removed" in error["message"]


def test_the_former_name_of_words_to_search_by_is_refused_with_the_new_one(
    client: TestClient,
) -> None:
    body = {"document": "a b", "query": "who", "evidence": {"by": "bm25", "query": "a"}}
    error = client.post("/v1/answers", json=body).json()["error"]
    assert error["message"] == "evidence.query: moved to evidence.words"


KINDS = ("document", "spans", "query_spans", "prompt", "evidence")
GROUPS = ("on", "rollouts", "loss", "optimizer", "fast_weights")


def test_every_former_field_has_a_place_that_exists() -> None:
    assert PLACES.keys() == FORMER.keys()
    known = set()
    for kind in KINDS:
        config = AdaptConfig().updated(on={"kind": kind}).model_dump()
        known |= {f"{group}.{field}" for group in GROUPS for field in config[group]}
    assert {place.split(",")[0] for place in PLACES.values()} <= known


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("adapt", "param", "message"),
    [
        ({"on": {"kind": "spans", "tokens": 7}}, "on.tokens", "must be at least 8"),
        ({"on": {"kind": "spans", "learn_as": "answer"}}, "on.learn_as", "no such field"),
        ({"on": {"kind": "document", "ntp_on": "spans"}}, "on.ntp_on", "no such field"),
        ({"on": {"kind": "chapters"}}, "on.kind", "must be one of 'document', 'spans'"),
        ({"on": {}}, "on.kind", "required"),
        ({"on": "spans"}, "on", "must be an object"),
        ({"on": {"kind": "spans"}, "rollouts": {"tokens": 17}}, "", "at least twice"),
        ({"rollouts": {"positions": 128, "per_position": 5}}, "rollouts", "at most 512"),
        ({"optimizer": "adamw"}, "optimizer", "must be an object"),
        ({"colour": 0.2}, "colour", "no such field"),
    ],
)
def test_errors_name_the_field_in_its_group(
    client: TestClient, path: str, adapt: dict[str, Any], param: str, message: str
) -> None:
    above = "ttt.adapt" if "completions" in path else "adapt"
    error = refusal(client, path, adapt)
    assert error["param"] == (f"{above}.{param}" if param else above)
    assert message in error["message"]


@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/v1/answers"])
@pytest.mark.parametrize(
    "adapt", [{"on": {"kind": "query_spans"}}, {"on": {"kind": "prompt"}}, {"preset": "paper"}]
)
def test_what_adapts_on_a_query_needs_a_route_that_has_the_query(
    client: TestClient, path: str, adapt: dict[str, Any]
) -> None:
    above = "ttt.adapt" if "completions" in path else "adapt"
    assert refusal(client, path, adapt)["param"] == f"{above}.on.kind"
    answered = client.post("/v1/answers", json=ROUTES["/v1/answers"](adapt))
    assert answered.status_code == 200


@pytest.mark.parametrize("path", ROUTES)
def test_a_preset_is_overridden_field_by_field(client: TestClient, path: str) -> None:
    above = "ttt.adapt" if "completions" in path else "adapt"
    adapt = {"preset": "paper", "on": {"kind": "document"}, "optimizer": {"steps": 2}}
    assert client.post(path, json=ROUTES[path](adapt)).is_success
    error = refusal(client, path, {"preset": "thesis"})
    assert error["param"] == f"{above}.preset"
    assert "'paper'" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "examples"),
    [("/v1/answers", AnswerBody, ANSWERS), ("/v1/adaptations", AdaptationBody, ADAPTATIONS)],
)
def test_the_documented_examples_are_valid_requests(
    client: TestClient, path: str, body: type[BaseModel], examples: dict[str, Any]
) -> None:
    openapi = client.get("/openapi.json").json()
    content = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"] == examples
    assert len(examples) == {"/v1/answers": 2, "/v1/adaptations": 3}[path]
    for example in examples.values():
        body.model_validate(example["value"])


def test_the_documentation_has_a_schema_for_every_kind(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    kinds = schemas["AdaptConfig"]["properties"]["on"]["discriminator"]["mapping"]
    assert set(kinds) == set(KINDS)
    for reference in kinds.values():
        assert "kind" in schemas[reference.rsplit("/", 1)[1]]["required"]
    undescribed = [
        f"{name}.{field}"
        for name in schemas
        if name.endswith("Config") or name.startswith("On")
        for field, described in schemas[name]["properties"].items()
        if field != "kind" and "description" not in described and "$ref" not in described
    ]
    assert undescribed == []


@pytest.mark.parametrize("path", ROUTES)
def test_a_presets_name_alone_is_refused_with_its_form(client: TestClient, path: str) -> None:
    error = refusal(client, path, "fast")  # type: ignore[arg-type]
    above = "ttt.adapt" if "completions" in path else "adapt"
    assert error["message"] == f'{above}: must be an object, such as {{"preset": "fast"}}'


@pytest.mark.parametrize("path", ["/v1/answers", "/v1/adaptations", "/v1/chat/completions"])
@pytest.mark.parametrize("preset", ["fast", "balanced", "thorough"])
def test_every_route_takes_presets(client: TestClient, path: str, preset: str) -> None:
    body = ROUTES[path]({"preset": preset, "optimizer": {"steps": 1}})
    if path == "/v1/adaptations" and preset != "thorough":
        response = client.post(path, json=body)
        assert response.status_code == 422
        assert "queries: adapting on evidence" in response.json()["error"]["message"]
        body["queries"] = ["who"]
    assert client.post(path, json=body).is_success
