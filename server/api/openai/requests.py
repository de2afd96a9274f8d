"""What requests for completions and for chat completions may say."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import override

from refine_server.server.api.fields import AnswerTokens
from refine_server.server.api.openai.compatibility import Ignored, Unsupported
from refine_server.server.api.openai.documents import FileFields
from refine_server.server.api.openai.generation import GenerationBody
from refine_server.server.api.openai.messages import ChatMessage, Messages, attached_files
from refine_server.server.api.response_format import ResponseFormat, schema_forms
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import DEFAULT_CONTEXT
from refine_server.ttt.interface.strict import StrictModel

MAX_PROMPTS = 128
MAX_CHOICES = 16
MAX_LOGPROBS = 20
COMPLETION_TOKENS = 16
CHAT_TOKENS = 512
"""Longest completion and chat answer when a request does not say; the former is OpenAI's."""


class StreamOptions(StrictModel):
    """What a stream contains in addition to the tokens."""

    include_usage: bool | None = Field(None, description="Send the token counts in a last chunk.")
    continuous_usage_stats: bool | None = Field(
        None,
        description="With include_usage: send the token counts so far in every chunk (as vLLM).",
    )
    include_obfuscation: Ignored = None


class ChoicesBody(GenerationBody):
    """What completions and chat completions have in common."""

    max_tokens: AnswerTokens | None = None
    n: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="Number of choices for each prompt."
    )
    response_format: ResponseFormat | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(
        cls, value: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("requires stream to be true")
        return value

    @property
    def choices(self) -> int:
        """Number of choices for each prompt."""
        return self.n or 1


def _as_prompts(value: object) -> object:
    """One prompt or many, texts or tokens, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        if len(value) > MAX_PROMPTS:
            raise PydanticCustomError(
                "prompt", "must be at most {most} prompts", {"most": MAX_PROMPTS}
            )
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and all(type(id) is int for id in item) for item in value
        ):
            return value
    raise PydanticCustomError(
        "prompt", "must be a string, a list of strings, a list of tokens or a list of such lists"
    )


Prompts = Annotated[
    list[str | list[int]],
    BeforeValidator(
        _as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
    ),
    Field(max_length=MAX_PROMPTS),
]


class CompletionBody(ChoicesBody):
    """Prompts to continue as they are, in text or in tokens."""

    model_config = ConfigDict(title="CompletionRequest")
    default_context = "document"
    prompt_field = "prompt"

    prompt: Prompts
    echo: bool | None = Field(None, description="Return the prompt before its continuation.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return log-probabilities, with this many of the likeliest tokens.",
    )
    best_of: Unsupported = None
    suffix: Unsupported = None

    @override
    def expected_queries(self) -> tuple[str, ...]:
        texts = [prompt for prompt in self.prompt if isinstance(prompt, str)]
        if len(texts) < len(self.prompt):
            message = "prompt: ttt.adapt.on.kind evidence requires texts, not tokens"
            raise RequestError(message, "prompt", "invalid_value")
        return tuple(dict.fromkeys(texts))

    def to_sampling(self, longest: int) -> SamplingConfig:
        """How to decode; ``longest`` is the server's limit on ``max_tokens``."""
        forms = schema_forms(self.response_format)
        return self.sampling(
            self.max_tokens, COMPLETION_TOKENS, longest, field="max_tokens", forms=forms
        )


class ChatBody(ChoicesBody):
    """A conversation to answer."""

    model_config = ConfigDict(title="ChatCompletionRequest")
    default_context = DEFAULT_CONTEXT
    prompt_field = "messages"

    messages: Messages
    max_completion_tokens: AnswerTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: Unsupported = None
    audio: Unsupported = None
    chat_template: Unsupported = None
    chat_template_kwargs: Unsupported = None
    continue_final_message: Unsupported = None
    echo: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    modalities: Unsupported = None
    prediction: Unsupported = None
    tool_choice: Unsupported = None
    tools: Unsupported = None
    web_search_options: Unsupported = None
    parallel_tool_calls: Ignored = None
    reasoning_effort: Ignored = None
    verbosity: Ignored = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("requires logprobs to be true")
        return value

    @override
    def expected_queries(self) -> tuple[str, ...]:
        messages = (message.to_message() for message in reversed(self.messages))
        return tuple(m.content for m in messages if m.role == "user")[:1]

    @override
    def attached(self) -> Iterable[tuple[str, FileFields]]:
        return attached_files(self.messages)

    def to_sampling(self, longest: int) -> SamplingConfig:
        """How to decode; ``longest`` is the server's limit on ``max_tokens``."""
        asked, field = self.max_completion_tokens, "max_completion_tokens"
        if asked is None:
            asked, field = self.max_tokens, "max_tokens"
        forms = schema_forms(self.response_format)
        return self.sampling(asked, CHAT_TOKENS, longest, field=field, forms=forms)


class TokenizeBody(StrictModel):
    """A text or a conversation to tokenise (as vLLM)."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = Field(None, validate_default=True)
    add_special_tokens: bool | None = Field(None, description="Default: true.")
    add_generation_prompt: Unsupported = None
    chat_template: Unsupported = None
    chat_template_kwargs: Unsupported = None
    continue_final_message: Unsupported = None
    tools: Unsupported = None
    return_token_strs: bool | None = None

    @field_validator("messages")
    @classmethod
    def _or_a_prompt(
        cls, value: list[ChatMessage] | None, info: ValidationInfo
    ) -> list[ChatMessage] | None:
        if (value is None) == (info.data.get("prompt") is None):
            raise ValueError("give either messages or prompt")
        for param, _ in attached_files(value or ()):
            raise ValueError(f"{param} is no part of what is tokenised")
        return value


class DetokenizeBody(StrictModel):
    """Tokens to join into a text (as vLLM)."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
