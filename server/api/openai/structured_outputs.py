"""The form that an answer is held to, as vLLM's ``structured_outputs`` names it."""

from typing import Any

from pydantic import Field

from refine_server.server.api.openai.compatibility import Ignored, Unsupported
from refine_server.server.api.response_format import GuidedChoice, choice_forms, json_format
from refine_server.ttt.interface.output_format import (
    ANY_OBJECT,
    GrammarFormat,
    JsonFormat,
    OutputFormat,
    RegexFormat,
)
from refine_server.ttt.interface.strict import StrictModel


class StructuredOutputs(StrictModel):
    """The form of the answer as vLLM names it; one of the fields says it."""

    schema_or_text: dict[str, Any] | str | None = Field(
        None, alias="json", description="A JSON schema, as an object or as its JSON text."
    )
    json_object: bool | None = Field(None, description="Any JSON object.")
    choice: GuidedChoice | None = None
    regex: str | None = Field(
        None,
        min_length=1,
        description="A regular expression for the whole answer, in the syntax of Rust's regex.",
    )
    grammar: str | None = Field(
        None,
        min_length=1,
        description="A grammar for the whole answer, in Lark (as llguidance reads it) or GBNF.",
    )
    structural_tag: Unsupported = None
    whitespace_pattern: Unsupported = None
    disable_additional_properties: Unsupported = None
    disable_any_whitespace: Unsupported = None
    disable_fallback: Ignored = None

    def forms(self, param: str) -> list[OutputFormat]:
        """Return all forms that it names; ``param`` is the field that has it.

        Raises:
            RequestError: its schema is not JSON of an object, or is nested too deeply.
        """
        forms: list[OutputFormat] = []
        if self.schema_or_text is not None:
            forms.append(json_format(self.schema_or_text, f"{param}.json"))
        if self.json_object:
            forms.append(JsonFormat(ANY_OBJECT, f"{param}.json_object"))
        forms += choice_forms(self.choice, f"{param}.choice")
        if self.regex is not None:
            forms.append(RegexFormat(self.regex, f"{param}.regex"))
        if self.grammar is not None:
            forms.append(GrammarFormat(self.grammar, f"{param}.grammar"))
        return forms
