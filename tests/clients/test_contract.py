"""The SDK's types against the server's OpenAPI document: both must change together."""

import json
import types
from functools import partial
from pathlib import Path
from typing import Any, Literal, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from pydantic import BaseModel

from refine_server.clients import options
from refine_server.clients import types as sdk
from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from refine_server.ttt.interface.config import AdaptConfig

RESPONSES: dict[str, type[BaseModel]] = {
    "StepReport": sdk.Step,
    "RequestAccepted": sdk.Accepted,
    "QueuePosition": sdk.QueuePosition,
    "RequestProgress": sdk.Progress,
    "ReadingProgress": sdk.Reading,
    "AdaptationBegun": sdk.AdaptationStarted,
    "StepProgress": sdk.StepMade,
    "AnswerText": sdk.AnswerDelta,
    "EstimateResponse": sdk.Estimate,
    "AnswerResponse": sdk.Answer,
    "AdaptationResource": sdk.Adaptation,
    "DocumentResource": sdk.Document,
    "Model": sdk.Model,
    "Version": sdk.Version,
    "ErrorDetail": sdk.Failure,
    "TttReport": sdk.TttReport,
}
REQUESTS: dict[str, tuple[type, set[str]]] = {
    "AnswerBody": (options.AnswerOptions, {"query", "stream"}),
    "AdaptationBody": (options.AdaptationOptions, {"document"}),
    "AdaptationChanges": (options.AdaptationChanges, set()),
    "TttOptions": (options.TttOptions, set()),
}
"""The options of a request, and its fields that are arguments of the client's methods."""
CONSTANTS = {"object", "owned_by"}
"""Response fields with a single possible value, which the client ignores."""


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings(model="tiny")).openapi()


@pytest.mark.parametrize("name", RESPONSES)
def test_responses_have_the_fields_that_the_client_reads(
    openapi: dict[str, Any], name: str
) -> None:
    schema = openapi["components"]["schemas"][name]
    named = {"name"} if name == "Version" else set()  # of the server's software
    described = described_form(openapi, schema, without=CONSTANTS | named)
    if "adapt" in described:
        described["adapt"] = "object"  # not typed: a newer server may have more options
    assert typed_form(RESPONSES[name]) == described


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_have_the_fields_that_the_client_sends(openapi: dict[str, Any], name: str) -> None:
    typed, arguments = REQUESTS[name]
    schema = openapi["components"]["schemas"][name]
    assert typed_form(typed) == described_form(openapi, schema, without=arguments)


def test_the_openapi_document_of_the_typescript_client_is_current(openapi: dict[str, Any]) -> None:
    committed = Path(__file__).parents[2] / "clients" / "typescript" / "openapi.json"
    assert json.loads(committed.read_text()) == json.loads(json.dumps(openapi)), "make typescript"


@pytest.mark.parametrize("on", ["document", "spans", "query_spans", "prompt"])
def test_the_defaults_of_adapt_are_in_the_contract(openapi: dict[str, Any], on: str) -> None:
    expected = AdaptConfig().updated(on={"kind": on}).model_dump()
    assert sdk.adapt_defaults_of(openapi, on) == expected


def test_every_event_is_typed(openapi: dict[str, Any]) -> None:
    paths = openapi["paths"]
    assert event_names(paths["/v1/answers"]["post"]) == {*sdk.EVENTS, "error"}
    followed = paths["/v1/adaptations/{adaptation_id}/events"]["get"]
    progress = {event.name for event in sdk.PROGRESS}
    assert event_names(followed) == {*progress, *sdk.ENDINGS, "error"}


def event_names(operation: dict[str, Any]) -> set[str]:
    stream = operation["responses"]["200"]["content"]["text/event-stream"]
    return {item["properties"]["event"]["const"] for item in stream["itemSchema"]["oneOf"]}


def test_the_data_of_every_event_is_described(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    for path in ("/v1/answers", "/v1/adaptations/{adaptation_id}/events"):
        [operation] = openapi["paths"][path].values()
        stream = operation["responses"]["200"]["content"]["text/event-stream"]
        for item in stream["itemSchema"]["oneOf"]:
            described = item["properties"]["data"]["contentSchema"]["$ref"]
            assert described.rsplit("/", 1)[1] in schemas


Form = Any
"""A type in a common notation: a name, a set of alternatives, ["array", item], or an
object's fields, the optional ones with a question mark."""

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def typed_form(hint: Any) -> Form:
    """Return the form of a Python type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Required:
        return typed_form(arguments[0])
    if origin in (Union, types.UnionType):
        return alternatives([typed_form(argument) for argument in arguments])
    if origin is Literal:
        return alternatives([f"={value}" for value in arguments])
    if origin is list:
        return ["array", typed_form(arguments[0])]
    if origin is dict:
        return "object"
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return fields({n: typed_form(of) for n, of in hints.items()}, hint.__required_keys__)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        hints = get_type_hints(hint)
        required = {name for name, info in hint.model_fields.items() if info.is_required()}
        return fields({name: typed_form(hints[name]) for name in hint.model_fields}, required)
    return NAMES[hint]


def described_form(
    openapi: dict[str, Any], schema: dict[str, Any], without: set[str] = frozenset()
) -> Form:
    """Return the form of a JSON schema."""
    if "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for one_of in ("anyOf", "oneOf"):
        if one_of in schema:
            return alternatives([described_form(openapi, part) for part in schema[one_of]])
    if "const" in schema:
        return f"={schema['const']}"
    if "enum" in schema:
        return alternatives([f"={value}" for value in schema["enum"]])
    if schema["type"] == "array":
        return ["array", described_form(openapi, schema["items"])]
    if schema["type"] != "object" or "properties" not in schema:
        return schema["type"]
    described = {
        name: described_form(openapi, field)
        for name, field in schema["properties"].items()
        if name not in without
    }
    return fields(described, set(schema.get("required", ())))


def alternatives(forms: list[Form]) -> Form:
    """Combine alternatives into one form, independent of their order and of how they are nested."""
    nested = [f if isinstance(f, list) and f[0] != "array" else [f] for f in forms]
    flat = [form for of in nested for form in of]
    return flat[0] if len(flat) == 1 else sorted(flat, key=partial(json.dumps, sort_keys=True))


def fields(forms: dict[str, Form], required: Any) -> dict[str, Form]:
    return {name if name in required else f"{name}?": form for name, form in forms.items()}
