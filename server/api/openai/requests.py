"""What requests to the OpenAI-compatible routes may say.

Every field of OpenAI's is known here; ``compatibility`` says what becomes of those that this server
does not act on. An unknown field is refused by name.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import override

from refine_server.server.api.documents import Document
from refine_server.server.api.fields import AnswerTokens, StopStrings, answer_tokens
from refine_server.server.api.openai.compatibility import Ignored, Unsupported
from refine_server.server.api.openai.documents import FileFields, NamedDocument, find_document
from refine_server.server.api.openai.messages import ChatMessage, Messages, attached_files
from refine_server.server.api.openai.structured_outputs import StructuredOutputs
from refine_server.server.api.response_format import (
    GuidedChoice,
    ResponseFormat,
    output_format,
)
from refine_server.ttt.interface.config import (
    DocumentAdaptConfig,
    SamplingConfig,
    Temperature,
    TopP,
)
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import Evidence, OnOverflow, ReadContext
from refine_server.ttt.interface.requests import DEFAULT_CONTEXT, DEFAULT_OVERFLOW
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


class TttOptions(StrictModel):
    """This server's extension: answer from a document, adapted to it or not."""

    document: Document | None = Field(
        None,
        description="The text to answer from, or a file that has it; the request's prompts or "
        "messages follow it.",
    )
    context: ReadContext | None = Field(
        None,
        description="What the model reads before the prompt or the messages: the `document`, its "
        "`passages` (the evidence instead of the document), or `document+passages` (the evidence "
        f"again behind the document). Default: {DEFAULT_CONTEXT} in a chat and where `evidence` is "
        "given, as in /v1/answers; the document alone in other completions, which continue it as "
        "it is.",
    )
    evidence: Evidence | None = Field(
        None,
        description="How evidence is found in the document, for the user's last message or for "
        "each prompt. Default: by words (`bm25`), where the context needs evidence.",
    )
    on_overflow: OnOverflow | None = Field(
        None,
        description="What is done with a document that is too long to be read as a whole, as in "
        f"/v1/answers. Default: {DEFAULT_OVERFLOW}, and truncate_middle with `adapt`, which has no "
        "query.",
    )
    adapt: DocumentAdaptConfig = Field(
        DocumentAdaptConfig(objective="none"),
        description="Settings of an adaptation to the document, as in /v1/adaptations, which is "
        "kept. Without them the model is not adapted; `{}` adapts with REFINE.",
    )


class GenerationBody(StrictModel, ABC):
    """What completions and chat completions have in common."""

    default_context: ClassVar[ReadContext]
    """What is read of a document where a request says nothing of context and evidence."""
    prompt_field: ClassVar[str]
    """The field with what follows the document."""

    model: str | None = Field(
        None, description="The served model's id, or that of an adaptation to continue from."
    )
    ttt: TttOptions | None = None
    max_tokens: AnswerTokens | None = None
    temperature: Temperature | None = Field(
        None, description="Default: 1, as at OpenAI; 0 decodes greedily."
    )
    top_p: TopP | None = None
    n: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="Number of choices for each prompt."
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Random seed of the first choice; each further choice adds 1.",
    )
    stop: StopStrings | None = Field(None, description="Strings before which a choice ends.")
    ignore_eos: bool = Field(False, description="Continue after the end-of-text token (as vLLM).")
    response_format: ResponseFormat | None = None
    guided_choice: GuidedChoice | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    frequency_penalty: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    include_stop_str_in_output: Unsupported = None
    length_penalty: Unsupported = None
    logit_bias: Unsupported = None
    min_p: Unsupported = None
    min_tokens: Unsupported = None
    no_repeat_ngram_size: Unsupported = None
    presence_penalty: Unsupported = None
    prompt_logprobs: Unsupported = None
    repetition_penalty: Unsupported = None
    skip_special_tokens: Unsupported = None
    spaces_between_special_tokens: Unsupported = None
    stop_token_ids: Unsupported = None
    top_k: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    typical_p: Unsupported = None
    use_beam_search: Unsupported = None
    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None

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

    def document(self) -> NamedDocument | None:
        """Return the document that the request is about, None if there is none.

        Raises:
            RequestError: it names several, or none where it should.
        """
        return find_document(self.ttt.document if self.ttt else None, self.attached())

    def attached(self) -> Iterable[tuple[str, FileFields]]:
        """Return the files in the messages, each with the path of its fields."""
        return ()

    @abstractmethod
    def expected_queries(self) -> tuple[str, ...]:
        """Return the questions that an adaptation on evidence is aimed at.

        Raises:
            RequestError: they are not there as text.
        """

    def sampling(
        self, max_tokens: int | None, default: int, longest: int, *, field: str = "max_tokens"
    ) -> SamplingConfig:
        """Return how to decode.

        Args:
            max_tokens: what the request says.
            default: what holds if it says nothing.
            longest: the server's limit.
            field: the field that says it.

        Raises:
            RequestError: more tokens are asked for than the server allows, or two forms.
        """
        asked = self.structured_outputs
        further = () if asked is None else asked.forms("structured_outputs")
        seed = secrets.randbelow(2**63) if self.seed is None else self.seed % 2**63
        return SamplingConfig(
            max_tokens=answer_tokens(max_tokens, default, longest, field),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(self.stop or ()),
            ignore_eos=self.ignore_eos,
            form=output_format(self.response_format, self.guided_choice, further),
            seed=seed,
        )


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


class CompletionBody(GenerationBody):
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
        return self.sampling(self.max_tokens, COMPLETION_TOKENS, longest)


class ChatBody(GenerationBody):
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
        return self.sampling(asked, CHAT_TOKENS, longest, field=field)


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
