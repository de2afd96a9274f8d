"""Forms that an answer can be held to: JSON of a schema, or one of several texts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """A JSON value that a schema describes."""

    schema: str
    """The JSON schema, as JSON."""
    param: str
    """The field of the request that has the schema, for errors."""


@dataclass(frozen=True, slots=True)
class ChoiceFormat:
    """One of several texts."""

    choices: tuple[str, ...]
    param: str
    """The field of the request that has the choices, for errors."""


OutputFormat = JsonFormat | ChoiceFormat
ANY_OBJECT = '{"type": "object"}'
"""The schema of any JSON object."""
