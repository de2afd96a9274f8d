"""The input items of a response, as clients of OpenAI's API send them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from refine_server.server.api.documents import FileId
from refine_server.server.api.openai.compatibility import (
    NO_TOOLS,
    NOT_KEPT,
    Ignored,
    Unsupported,
)
from refine_server.server.api.openai.messages import MAX_MESSAGES
from refine_server.ttt.interface.requests import Message
from refine_server.ttt.interface.strict import StrictModel


class InputText(StrictModel):
    """A piece of a message's text."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Ignored = None


class SaidText(StrictModel):
    """A piece of an earlier answer, as a response has it."""

    type: Literal["output_text"]
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None


class InputFile(StrictModel):
    """A file that the conversation is about: its document."""

    type: Literal["input_file"]
    file_id: FileId | None = None
    file_data: str | None = Field(
        None,
        min_length=1,
        description="The contents: a data URL or base64, as OpenAI's clients send them, or the "
        "text itself.",
    )
    file_url: Unsupported = None
    filename: Ignored = None
    detail: Ignored = None
    prompt_cache_breakpoint: Ignored = None


PARTS = ("input_text", "output_text", "input_file")
Part = Annotated[InputText | SaidText | InputFile, Field(discriminator="type")]
"""A part of a message."""


def _supported_parts(value: object) -> object:
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in PARTS:
                message = "only parts of type input_text, output_text and input_file are supported"
                raise PydanticCustomError("unsupported", message)
    return value


class InputMessage(StrictModel):
    """A turn of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[Part], Field(fail_fast=True)], BeforeValidator(_supported_parts)
    ]
    id: Ignored = None
    phase: Ignored = None
    status: Ignored = None

    def to_message(self) -> Message:
        """The turn as a prompt has it. Its files are the document, which comes before it."""
        if isinstance(self.content, str):
            text = self.content
        else:
            text = "".join(p.text for p in self.content if not isinstance(p, InputFile))
        return Message("system" if self.role == "developer" else self.role, text)


class Reasoning(StrictModel):
    """Earlier reasoning, which is no part of the prompt."""

    type: Literal["reasoning"]
    content: Ignored = None
    encrypted_content: Ignored = None
    id: Ignored = None
    status: Ignored = None
    summary: Ignored = None


def _kind(item: Any) -> str:
    """Return the kind of an item; a message need not say that it is one."""
    kind = item.get("type", "message") if isinstance(item, dict) else item.type or "message"
    return kind if isinstance(kind, str) else "message"


def _supported_items(value: object) -> object:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict) and _kind(item) not in ("message", "reasoning"):
                message = "items of type {kind} are not supported by this server: {reason}"
                reason = NOT_KEPT if _kind(item) == "item_reference" else NO_TOOLS
                context = {"kind": _kind(item)[:64], "reason": reason}
                raise PydanticCustomError("unsupported", message, context)
            if not isinstance(item, dict):
                raise PydanticCustomError("unsupported", "must be a string or a list of objects")
    return value


Item = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(_kind),
]
"""An item of the input."""

Input = Annotated[
    str | Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)],
    BeforeValidator(_supported_items),
    Field(description="The user's message, or the turns of a conversation."),
]


def messages_of(input: str | Sequence[Item]) -> tuple[Message, ...]:
    """Return the turns of an input."""
    if isinstance(input, str):
        return (Message("user", input),)
    return tuple(item.to_message() for item in input if isinstance(item, InputMessage))


def attached_files(input: str | Sequence[Item]) -> Iterator[tuple[str, InputFile]]:
    """Yield the files of an input, each with the path of its fields."""
    for number, item in enumerate(() if isinstance(input, str) else input):
        if not isinstance(item, InputMessage) or isinstance(item.content, str):
            continue
        for place, part in enumerate(item.content):
            if isinstance(part, InputFile):
                yield f"input.{number}.content.{place}", part
