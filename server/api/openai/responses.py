"""What the OpenAI-compatible routes answer."""

from typing import Literal

from pydantic import BaseModel, Field


class CompletionUsage(BaseModel):
    """Token counts; what an adaptation read is not among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TttReport(BaseModel):
    """This server's extension: which adaptation answered. ``adapted`` is false when it failed."""

    adaptation: str
    adapted: bool
    document_tokens: int


class _Response(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: CompletionUsage
    ttt: TttReport | None = None


class CompletionLogprobs(BaseModel):
    """Of every token: text, log-probability, the likeliest in its place, where it starts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(_Response):
    """All continuations."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class TopLogprob(BaseModel):
    """A token that could have been: ``bytes`` are its UTF-8, which may be cut."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was decoded, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of every token of the content."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """What the model says."""

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
    max_model_len: int = Field(description="The longest prompt that is accepted.")
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
