"""Forms that an answer can be held to: JSON, one of several texts, a pattern or a grammar."""

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


@dataclass(frozen=True, slots=True)
class RegexFormat:
    """A text that a regular expression matches as a whole."""

    pattern: str
    """In the syntax of Rust's ``regex``, which has no look-around and no back-references."""
    param: str
    """The field of the request that has the pattern, for errors."""


@dataclass(frozen=True, slots=True)
class GrammarFormat:
    """A text of a context-free grammar."""

    grammar: str
    """The grammar, in llguidance's dialect of Lark or in GBNF (llama.cpp)."""
    param: str
    """The field of the request that has the grammar, for errors."""


OutputFormat = JsonFormat | ChoiceFormat | RegexFormat | GrammarFormat
ANY_OBJECT = '{"type": "object"}'
"""The schema of any JSON object."""
