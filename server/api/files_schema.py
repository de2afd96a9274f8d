"""The wire contract of files, as OpenAI's API has it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from refine_server.server.files.file import File, Purpose
from refine_server.server.settings import MAX_TTL_SECONDS
from refine_server.ttt.interface.strict import StrictModel

MAX_FILENAME = 255
NOT_SERVED = {
    "fine-tune": "this server trains no models; adapt to a document with /v1/adaptations",
    "evals": "this server runs no evaluations",
    "vision": "the model reads and writes text",
    "batch_output": "only batches write such files",
}
"""Purposes of OpenAI's API, and why files for them are refused."""


def _served(value: object) -> object:
    if isinstance(value, str) and value in NOT_SERVED:
        message = "{value} is not supported by this server: {reason}"
        context = {"value": value, "reason": NOT_SERVED[value]}
        raise PydanticCustomError("unsupported", message, context)
    return value


class ExpiresAfter(StrictModel):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: Annotated[
        int,
        # Not strict: a form has texts only.
        Field(ge=1, le=int(MAX_TTL_SECONDS), strict=False, description="After its upload."),
    ]


class FileFields(StrictModel):
    """A file to keep: text in UTF-8."""

    model_config = ConfigDict(title="FileUpload")

    purpose: Annotated[
        Literal["user_data", "assistants", "batch"],
        BeforeValidator(_served),
        Field(
            description="`batch` for the lines of a batch; a document may have any of the others."
        ),
    ]
    expires_after: ExpiresAfter | None = Field(
        None, description="Default: the server's setting (--file-ttl-seconds)."
    )


def expiry_fields() -> dict[str, Any]:
    """Return the fields of a form, for the OpenAPI document, that say when a file expires."""
    return {
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": 1,
            "maximum": int(MAX_TTL_SECONDS),
            "description": "Seconds after its upload. Default: the server's setting "
            "(--file-ttl-seconds).",
        },
    }


UPLOAD_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "title": "FileUpload",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "contentMediaType": "text/plain",
                            "description": "The file, with its name: text in UTF-8.",
                        },
                        "purpose": {
                            "type": "string",
                            "enum": ["user_data", "assistants", "batch"],
                            "description": "`batch` for the lines of a batch; a document may have "
                            "any of the others.",
                        },
                        **expiry_fields(),
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}
"""The form of an upload, for the OpenAPI document."""


class FileResource(BaseModel):
    """A file. Its id is accepted as ``file_id`` wherever a document or a batch is named."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int | None = Field(description="Seconds since 1970.")
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: File) -> "FileResource":
        """Return the resource."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at),
            expires_at=int(file.expires_at),
            filename=file.filename,
            purpose=file.purpose,
        )


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileResource]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """Confirms a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
