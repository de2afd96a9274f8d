"""Responses of the OpenAI-compatible routes."""

from typing import Literal

from pydantic import BaseModel, Field

from refine_server.server.api.fields import AnsweredByField, KeptBaseReason
from refine_server.ttt.interface.reports import Citation, Overflow, Quote


class CompletionUsage(BaseModel):
    """Token counts, without those of an adaptation."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptCitation(Citation):
    """A part of the document that is evidence for a prompt."""

    prompt_index: int
    """The prompt's number, from 0 on; 0 in a chat."""


class ChoiceQuote(Quote):
    """Words of a choice, in the document."""

    choice_index: int
    """The choice's ``index``."""


class TttReport(BaseModel):
    """This server's extension: what of a document answered.

    In a stream, citations and quotes are in the chunk that ends a choice.
    """

    adaptation: str | None = Field(description="Id of the kept adaptation; null if there is none.")
    answered_by: AnsweredByField
    kept_base_reason: KeptBaseReason = None
    document_tokens: int = Field(description="Tokens of what was read of the document.")
    overflow: Overflow | None = Field(
        description="How the document was shortened because it was too long; null if it was not."
    )
    citations: list[PromptCitation] = Field(
        default=[],
        description="The evidence, in the document's order; empty where none was looked for.",
    )
    quotes: list[ChoiceQuote] = Field(
        default=[],
        description="The choices' own words that the document has, where evidence was looked for.",
    )


class _Response(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: CompletionUsage
    ttt: TttReport | None = None


class CompletionLogprobs(BaseModel):
    """Text, log-probability, likeliest alternatives and text offset of every token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation of a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(_Response):
    """The continuations of all prompts."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class TopLogprob(BaseModel):
    """A candidate token. ``bytes`` are its UTF-8 bytes, possibly part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A decoded token, and the likeliest candidates at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of every token of the content."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(_Response):
    """All answers."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Tokens(BaseModel):
    """A text's tokens (as vLLM)."""

    count: int
    max_model_len: int = Field(description="The longest prompt and its answer together.")
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The text of tokens (as vLLM)."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What a client needs to build prompts of its own (as vLLM)."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    model_max_length: int
