"""The document that a request of OpenAI's API is about: of ``ttt``, or a file in its messages."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from refine_server.server.api.documents import (
    Document,
    DocumentFile,
    ReadDocument,
    read_document,
    require_words,
)
from refine_server.server.files.content import NoTextError, decode_inline
from refine_server.server.files.registry import Files
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.errors import RequestError


class FileFields(Protocol):
    """The fields that say what a file in a message is."""

    @property
    def file_id(self) -> str | None: ...

    @property
    def file_data(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedDocument:
    """A document as a request names it."""

    document: Document | None = None
    inline: str | None = None
    """The contents of a file, as ``file_data``; instead of ``document``."""
    param: str
    """The field with the document, or with the file's fields."""

    @property
    def is_inline(self) -> bool:
        """Whether the request has the contents of a file."""
        return self.inline is not None

    @property
    def field(self) -> str:
        """The field at fault where the document cannot be read."""
        if self.is_inline:
            return f"{self.param}.file_data"
        return f"{self.param}.file_id" if isinstance(self.document, DocumentFile) else self.param

    async def read(self, files: Files, owner: str) -> ReadDocument:
        """Return the document with its text.

        Raises:
            ApiError: there is no such file, or it is no text.
            RequestError: the file has only white space.
        """
        if self.document is not None:
            return await read_document(self.document, files, owner, self.param)
        assert self.inline is not None
        try:
            text = decode_inline(self.inline)
        except NoTextError as error:
            message = f"{self.field}: {error}"
            raise ApiError(422, message, "unsupported_file", param=self.field) from None
        return ReadDocument(text=require_words(text, self.field))


def find_document(
    own: Document | None, attached: Iterable[tuple[str, FileFields]]
) -> NamedDocument | None:
    """Return the document of a request; None if it has none.

    A conversation may have the same file in several turns, as clients send earlier turns again.

    Args:
        own: that of ``ttt``.
        attached: the files in the messages, each with the path of its fields.

    Raises:
        RequestError: there are several, or a file has neither an id nor contents, or both.
    """
    named = [] if own is None else [NamedDocument(document=own, param="ttt.document")]
    for param, file in attached:
        if (file.file_id is None) == (file.file_data is None):
            message = f"{param}: give either file_id or file_data"
            raise RequestError(message, param, "invalid_value")
        document = None if file.file_id is None else DocumentFile(file_id=file.file_id)
        named.append(NamedDocument(document=document, inline=file.file_data, param=param))
    for other in named[1:]:
        if (other.document, other.inline) != (named[0].document, named[0].inline):
            message = (
                f"{other.param}: a request has one document, and {named[0].param} is another one; "
                "send their texts as one"
            )
            raise RequestError(message, other.param, "invalid_value")
    return named[0] if named else None
