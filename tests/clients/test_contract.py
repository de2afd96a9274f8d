"""The SDK's types against the server's OpenAPI document: neither may change alone."""

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel

from refine_server.clients import types as sdk
from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from refine_server.ttt.interface.config import AdaptConfig

SCHEMAS: dict[str, type[BaseModel]] = {
    "Step": sdk.Step,
    "Adaptation": sdk.AdaptationReport,
    "Usage": sdk.Usage,
    "Timings": sdk.Timings,
    "AnswerResponse": sdk.Answer,
    "Model": sdk.Model,
    "Version": sdk.Version,
    "AdaptationResource": sdk.Adaptation,
    "ErrorDetail": sdk.Failure,
}
OPTIONS: dict[str, tuple[type, set[str]]] = {
    "AdaptConfig": (sdk.AdaptOptions, set()),
    "AnswerBody": (sdk.AnswerOptions, {"query", "stream"}),
    "AdaptationBody": (sdk.AdaptationOptions, {"document"}),
}
CONSTANTS = {"object", "owned_by", "name"}
"""Fields with one possible value, which a client does not need."""


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings(model="tiny")).openapi()


@pytest.mark.parametrize("name", SCHEMAS)
def test_responses_have_the_fields_that_the_client_reads(
    openapi: dict[str, Any], name: str
) -> None:
    schema = openapi["components"]["schemas"][name]
    fields = SCHEMAS[name].model_fields
    assert set(fields) == set(schema["properties"]) - CONSTANTS
    needed = {field for field, info in fields.items() if info.is_required()}
    assert needed <= set(schema["required"])
    hints = get_type_hints(SCHEMAS[name])
    for field in fields:
        assert kinds(hints[field]) == json_kinds(openapi, schema["properties"][field]), field


@pytest.mark.parametrize("name", OPTIONS)
def test_requests_have_the_fields_that_the_client_sends(openapi: dict[str, Any], name: str) -> None:
    schema = openapi["components"]["schemas"][name]
    options, positional = OPTIONS[name]
    hints = get_type_hints(options)
    assert set(hints) == set(schema["properties"]) - positional
    for field, hint in hints.items():
        assert kinds(hint) == json_kinds(openapi, schema["properties"][field]), field


def test_the_document_of_the_typescript_client_is_the_servers(openapi: dict[str, Any]) -> None:
    committed = Path(__file__).parents[2] / "clients" / "typescript" / "openapi.json"
    assert json.loads(committed.read_text()) == json.loads(json.dumps(openapi)), "make typescript"


def test_the_defaults_of_adapt_are_in_the_contract(openapi: dict[str, Any]) -> None:
    assert sdk.adapt_defaults_of(openapi) == AdaptConfig().model_dump()


def test_every_event_is_typed(openapi: dict[str, Any]) -> None:
    paths = openapi["paths"]
    assert event_names(paths["/v1/answers"]["post"]) == {*sdk.EVENTS, "error"}
    followed = paths["/v1/adaptations/{adaptation_id}/events"]["get"]
    assert event_names(followed) == {sdk.Step.name, *sdk.ENDINGS}


def event_names(operation: dict[str, Any]) -> set[str]:
    stream = operation["responses"]["200"]["content"]["text/event-stream"]
    return set(stream["itemSchema"]["properties"]["event"]["enum"])


KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def kinds(hint: Any) -> set[str]:
    """Return the JSON types of a Python type, and the values of a Literal as ``=value``."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return set().union(*(kinds(part) for part in get_args(hint)))
    if origin is Literal:
        return {f"={value}" for value in get_args(hint)}
    if origin is list:
        return {"array"}
    return {KINDS.get(hint, "object")}


def json_kinds(openapi: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        return set().union(*(json_kinds(openapi, part) for part in schema["anyOf"]))
    if "enum" in schema:
        return {f"={value}" for value in schema["enum"]}
    return {schema["type"]}
