"""The form that an answer is held to, as OpenAI's API and vLLM's name it."""

import json
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


def output_format(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
    guided_choice: list[str] | None,
) -> OutputFormat | None:
    """Return the form that a request asks for; None for any text.

    Raises:
        RequestError: it asks for two forms, or its schema is nested too deeply.
    """
    form: OutputFormat | None = None
    match response_format:
        case JsonObjectFormat():
            form = JsonFormat(ANY_OBJECT, "response_format")
        case JsonSchemaFormat(json_schema=schema):
            try:
                form = JsonFormat(json.dumps(schema.definition), SCHEMA)
            except RecursionError:
                message = f"{SCHEMA}: its values are nested too deeply"
                raise RequestError(message, SCHEMA, "invalid_value") from None
    if guided_choice is None:
        return form
    if form is not None:
        message = "guided_choice: cannot be combined with a response_format other than text"
        raise RequestError(message, "guided_choice", "invalid_value")
    return ChoiceFormat(tuple(dict.fromkeys(guided_choice)), "guided_choice")
