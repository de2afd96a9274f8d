"""The messages of a conversation, as clients of OpenAI's API send them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from refine_server.server.api.documents import FileId
from refine_server.server.api.openai.compatibility import Ignored, Unsupported
from refine_server.ttt.interface.requests import Message
from refine_server.ttt.interface.strict import StrictModel

MAX_MESSAGES = 1024


class TextPart(StrictModel):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str
    annotations: Unsupported = None
    cache_control: Ignored = None
    id: Ignored = None
    index: Ignored = None


class FileContent(StrictModel):
    """A file that was uploaded with `/v1/files`, or its contents."""

    file_id: FileId | None = None
    file_data: str | None = Field(
        None,
        min_length=1,
        description="The contents: a data URL or base64, as OpenAI's clients send them, or the "
        "text itself.",
    )
    filename: Ignored = None
    file_url: Unsupported = None
    detail: Ignored = None


class FilePart(StrictModel):
    """A file that the conversation is about: its document."""

    type: Literal["file"]
    file: FileContent
    cache_control: Ignored = None
    id: Ignored = None
    index: Ignored = None


Part = Annotated[TextPart | FilePart, Field(discriminator="type")]
"""A part of a message."""


def _supported_parts(value: object) -> object:
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in ("text", "file"):
                message = "only parts of type text and file are supported"
                raise PydanticCustomError("unsupported", message)
    return value


class ChatMessage(StrictModel):
    """A turn of a conversation. Fields of an assistant's turn other than its text must be empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[Part], Field(fail_fast=True)] | None,
        BeforeValidator(_supported_parts),
    ] = Field(
        None,
        validate_default=True,
        description="The text, or parts of it. Only an assistant's turn may have none.",
    )
    type: Literal["message"] | None = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    prefix: Unsupported = None
    tool_calls: Unsupported = None
    cache_control: Ignored = None
    id: Ignored = None
    name: Ignored = None
    provider_specific_fields: Ignored = None
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    refusal: Ignored = None
    status: Ignored = None
    thinking_blocks: Ignored = None

    @field_validator("content")
    @classmethod
    def _only_an_assistant_may_say_nothing(
        cls, value: str | list[Part] | None, info: ValidationInfo
    ) -> str | list[Part] | None:
        if value is None and info.data.get("role") != "assistant":
            raise PydanticKnownError("missing")
        return value

    def to_message(self) -> Message:
        """The turn as a prompt has it. Its files are the document, which comes before it."""
        parts = self.content or ""
        if isinstance(parts, str):
            text = parts
        else:
            text = "".join(part.text for part in parts if isinstance(part, TextPart))
        return Message("system" if self.role == "developer" else self.role, text)


def attached_files(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, FileContent]]:
    """Yield the files of a conversation, each with the path of its fields."""
    for number, message in enumerate(messages):
        parts = message.content if isinstance(message.content, list) else ()
        for place, part in enumerate(parts):
            if isinstance(part, FilePart):
                yield f"messages.{number}.content.{place}.file", part.file


Messages = Annotated[
    list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
]
"""A conversation. Only the first message that is unfit is reported."""
