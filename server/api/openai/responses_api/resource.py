"""Responses of the Responses API."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from refine_server.server.api.openai.responses import TokenLogprob, TttReport

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class FileCitation(BaseModel):
    """Words of the answer that a file has."""

    type: Literal["file_citation"] = "file_citation"
    file_id: str
    filename: str
    index: int = Field(description="Where the words end in the text, in characters.")


class OutputText(BaseModel):
    """The text of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[FileCitation] = Field(
        default=[],
        description="The answer's own words in the document, where that is a file with an id; "
        "`ttt.quotes` says where they stand in it.",
    )
    logprobs: list[TokenLogprob] = []


class OutputMessage(BaseModel):
    """The model's message."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputTokensDetails(BaseModel):
    """Of the tokens that were read."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Of the tokens that were written."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Token counts, without those of an adaptation."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class ResponseError(BaseModel):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(BaseModel):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"]


class ResponseResource(BaseModel):
    """A response. It is not kept: `store` is always false."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    ttt: TttReport | None = None
