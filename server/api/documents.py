"""The document of a request: its text, or a file that has it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from refine_server.server.api.fields import Text
from refine_server.server.files.file import File
from refine_server.server.files.registry import Files
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.strict import StrictModel

FileId = Annotated[str, Field(min_length=1, max_length=128, description="The id of a file.")]


class DocumentFile(StrictModel):
    """A file that was uploaded with `/v1/files`."""

    file_id: FileId


Document = Text | DocumentFile
"""A document as a request names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadDocument:
    """A document whose text is known."""

    text: str
    file: File | None = None
    """The file that has it, if it is one."""

    @property
    def pages(self) -> tuple[int, ...]:
        """First character of each page; empty where it has none."""
        return () if self.file is None else self.file.page_starts


async def read_document(
    document: Document, files: Files, owner: str, param: str = "document"
) -> ReadDocument:
    """Return a document with its text.

    Args:
        document: as the request names it.
        files: has the files.
        owner: may use the file.
        param: the field that names it.

    Raises:
        ApiError: there is no such file, or it is no text.
        RequestError: the file has only white space.
    """
    if isinstance(document, str):
        return ReadDocument(text=document)
    field = f"{param}.file_id"
    file = await files.get(owner, document.file_id, field)
    return ReadDocument(text=require_words(await files.read_text(file, field), field), file=file)


def require_words(text: str, param: str) -> str:
    """Return the text of a file.

    Raises:
        RequestError: it has only white space.
    """
    if not text or text.isspace():
        message = f"{param}: the file must contain more than white space"
        raise RequestError(message, param, "invalid_value")
    return text
