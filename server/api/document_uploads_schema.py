"""The wire contract of documents whose text the server reads."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refine_server.server.api.files_schema import ExpiresAfter, expiry_fields
from refine_server.server.files.conversion.found import Kind
from refine_server.server.files.file import File
from refine_server.ttt.interface.strict import StrictModel


class DocumentFields(StrictModel):
    """A document to read and to keep."""

    model_config = ConfigDict(title="DocumentUpload")

    expires_after: ExpiresAfter | None = None


UPLOAD_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "title": "DocumentUpload",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "contentMediaType": "application/octet-stream",
                            "description": "The file, with its name: txt, md, html, docx or pdf. "
                            "Its content says which.",
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


class PageResource(BaseModel):
    """A page of a document, in characters of its text."""

    number: int = Field(description="From 1 on.")
    start: int = Field(description="Its first character.")
    end: int = Field(description="One beyond its last character, where the next page begins.")
    has_text: bool = Field(description="False for a page that is empty, or a picture.")


class DocumentResource(BaseModel):
    """A document's text. Its id is accepted as `file_id` wherever a document is named."""

    id: str
    object: Literal["document"] = "document"
    filename: str
    type: Kind
    title: str | None = Field(description="As the file itself says.")
    uploaded_bytes: int = Field(description="Size of the file that was sent.")
    characters: int = Field(description="Characters of the text (Unicode code points).")
    text: str = Field(description="The text that is read. Citations and traces count in it.")
    pages: list[PageResource] = Field(
        description="Of a PDF, in order; together they are the text. Empty for other types."
    )
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int = Field(description="Seconds since 1970.")

    @classmethod
    def of(cls, file: File, text: str) -> "DocumentResource":
        """Return the resource of a file and its text."""
        info = file.document
        pages = () if info is None else info.pages
        ends = [*(page.start for page in pages[1:]), len(text)]
        return cls(
            id=file.id,
            filename=file.filename,
            type="text" if info is None else info.kind,
            title=None if info is None else info.title,
            uploaded_bytes=file.bytes if info is None else info.uploaded_bytes,
            characters=len(text),
            text=text,
            pages=[
                PageResource(number=n, start=page.start, end=end, has_text=page.has_text)
                for n, (page, end) in enumerate(zip(pages, ends, strict=False), 1)
            ],
            created_at=int(file.created_at),
            expires_at=int(file.expires_at),
        )
