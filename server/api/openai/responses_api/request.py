"""What a request for a response may say."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator
from typing_extensions import override

from refine_server.server.api.fields import AnswerTokens
from refine_server.server.api.metadata import Metadata
from refine_server.server.api.openai.compatibility import Ignored, Unsupported
from refine_server.server.api.openai.documents import FileFields
from refine_server.server.api.openai.generation import GenerationBody
from refine_server.server.api.openai.requests import CHAT_TOKENS, MAX_LOGPROBS
from refine_server.server.api.openai.responses_api.input import Input, attached_files, messages_of
from refine_server.server.api.response_format import JsonObjectFormat, TextFormat, json_format
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.interface.output_format import ANY_OBJECT, JsonFormat, OutputFormat
from refine_server.ttt.interface.requests import DEFAULT_CONTEXT, Conversation, Message
from refine_server.ttt.interface.strict import StrictModel

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = Literal[
    "message.output_text.logprobs",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What a response can include. All but the first belong to items that this server never makes."""


class JsonSchemaConfig(StrictModel):
    """A JSON value that a schema describes."""

    type: Literal["json_schema"] = Field(description="The form: JSON of a schema.")
    name: str | None = Field(None, description="Without effect: a name of the form.")
    description: str | None = Field(None, description="Without effect: what the form is for.")
    definition: dict[str, Any] = Field(alias="schema", description="The JSON schema.")
    strict: bool | None = Field(None, description="Without effect: the schema always holds.")


class TextConfig(StrictModel):
    """How the answer is written."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaConfig, Field(discriminator="type")]
        | None
    ) = Field(None, description="The form of the answer, as `response_format` of chats.")
    verbosity: Ignored = None

    def forms(self) -> list[OutputFormat]:
        """Return the form that it asks for, if it asks for one.

        Raises:
            RequestError: its schema is nested too deeply.
        """
        match self.format:
            case JsonObjectFormat():
                return [JsonFormat(ANY_OBJECT, "text.format")]
            case JsonSchemaConfig(definition=schema):
                return [json_format(schema, "text.format.schema")]
        return []


class ResponseStreamOptions(StrictModel):
    """What a stream contains in addition to the events."""

    include_obfuscation: Ignored = None


class ResponsesBody(GenerationBody):
    """A text or a conversation to answer."""

    model_config = ConfigDict(title="ResponsesRequest")
    default_context = DEFAULT_CONTEXT
    prompt_field = "input"

    input: Input
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: Annotated[AnswerTokens, Field(ge=1)] | None = None
    metadata: Metadata | None = None
    text: TextConfig | None = None
    include: list[INCLUDABLE] | None = None
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return log-probabilities, with this many of the likeliest tokens.",
    )
    stream_options: ResponseStreamOptions | None = None
    background: Unsupported = None
    context_management: Unsupported = None
    conversation: Unsupported = None
    moderation: Unsupported = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    tool_choice: Unsupported = None
    tools: Unsupported = None
    truncation: Unsupported = None
    max_tool_calls: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_options: Ignored = None
    reasoning: Ignored = None

    @field_validator("input")
    @classmethod
    def _has_a_message(cls, value: Any) -> Any:
        if not messages_of(value):
            raise ValueError("must have a message")
        return value

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns of the conversation, the instructions first."""
        first = () if self.instructions is None else (Message("system", self.instructions),)
        return (*first, *messages_of(self.input))

    @property
    def logprobs(self) -> int | None:
        """Number of likeliest tokens beside each token; None: no log-probabilities."""
        if self.top_logprobs is None and LOGPROBS not in (self.include or ()):
            return None
        return self.top_logprobs or 0

    def conversation_to_answer(self) -> Conversation:
        """Return the conversation as a prompt."""
        return Conversation(self.messages)

    @override
    def expected_queries(self) -> tuple[str, ...]:
        return tuple(m.content for m in reversed(self.messages) if m.role == "user")[:1]

    @override
    def attached(self) -> Iterable[tuple[str, FileFields]]:
        return attached_files(self.input)

    def to_sampling(self, longest: int) -> SamplingConfig:
        """How to decode; ``longest`` is the server's limit on ``max_output_tokens``.

        Raises:
            RequestError: more tokens are asked for than the server allows, or two forms.
        """
        return self.sampling(
            self.max_output_tokens,
            CHAT_TOKENS,
            longest,
            field="max_output_tokens",
            forms=[] if self.text is None else self.text.forms(),
        )
