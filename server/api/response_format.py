"""The form that an answer is held to, as OpenAI's API and vLLM's name it."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.output_format import (
    ANY_OBJECT,
    ChoiceFormat,
    JsonFormat,
    OutputFormat,
)
from refine_server.ttt.interface.strict import StrictModel

SCHEMA = "response_format.json_schema.schema"


class TextFormat(StrictModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(StrictModel):
    """A JSON schema with a name."""

    model_config = ConfigDict(title="ResponseSchema")

    name: str | None = None
    description: str | None = None
    definition: dict[str, Any] = Field(
        alias="schema",
        description="The JSON schema. A schema that nothing fits, or that uses what is not "
        "supported (`not`, `uniqueItems`, references to other documents), is refused.",
    )
    strict: bool | None = Field(None, description="Without effect: the schema always holds.")


class JsonSchemaFormat(StrictModel):
    """A JSON value that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat,
    Field(
        discriminator="type",
        description="The form of the answer: `text`, `json_object`, or `json_schema` with a "
        "schema. Only tokens are decoded that keep the answer in it. An answer that reaches "
        "max_tokens ends within it, with the reason `length`.",
    ),
]


def _stripped(value: str) -> str:
    if value != value.strip():
        raise ValueError("must not begin or end with white space")
    return value


GuidedChoice = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_stripped)]],
    Field(
        min_length=1,
        max_length=1000,
        description="The answer is one of these texts (as vLLM's guided_choice).",
    ),
]


def schema_forms(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
) -> list[OutputFormat]:
    """Return the form that ``response_format`` asks for, if it asks for one.

    Raises:
        RequestError: its schema is nested too deeply.
    """
    match response_format:
        case JsonObjectFormat():
            return [JsonFormat(ANY_OBJECT, "response_format")]
        case JsonSchemaFormat(json_schema=schema):
            return [json_format(schema.definition, SCHEMA)]
    return []


def choice_forms(choices: list[str] | None, param: str = "guided_choice") -> list[OutputFormat]:
    """Return the form of one of several texts, if there are any; ``param`` is their field."""
    return [] if choices is None else [ChoiceFormat(tuple(dict.fromkeys(choices)), param)]


def json_format(schema: dict[str, Any] | str, param: str) -> JsonFormat:
    """Return the form of a schema, which may be JSON text; ``param`` is the field that has it.

    Raises:
        RequestError: it is not JSON of an object, or is nested too deeply.
    """
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if isinstance(parsed, dict):
            return JsonFormat(json.dumps(parsed), param)
        reason = "must be a JSON schema, which is an object"
    except RecursionError:
        reason = "its values are nested too deeply"
    except ValueError:
        reason = "must be JSON"
    raise RequestError(f"{param}: {reason}", param, "invalid_value")


def only_form(forms: Sequence[OutputFormat]) -> OutputFormat | None:
    """Return the form that a request asks for; None for any text.

    Raises:
        RequestError: it asks for several.
    """
    if len(forms) > 1:
        first, second = forms[0].param, forms[1].param
        raise RequestError(f"{second}: cannot be combined with {first}", second, "invalid_value")
    return forms[0] if forms else None
