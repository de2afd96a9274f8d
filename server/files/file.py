"""One file of a client."""

import hashlib
import re
import secrets
import time
from typing import Literal

from pydantic import BaseModel, ConfigDict

from refine_server.server.files.conversion.found import Kind

ID_PATTERN = re.compile("file-[0-9a-f]{32}")

Contents = bytes
"""The bytes of a file; in ``File`` that name is a field."""
Purpose = Literal["user_data", "assistants", "batch", "batch_output"]
"""What a file is for; outputs are written by batches."""


def new_id() -> str:
    """Return an id that cannot be guessed."""
    return f"file-{secrets.token_hex(16)}"


class DocumentPage(BaseModel):
    """A page of a document."""

    model_config = ConfigDict(frozen=True)

    start: int
    """Its first character in the document's text."""
    has_text: bool


class DocumentInfo(BaseModel):
    """What is known of the file that a document's text was read from."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    title: str | None
    uploaded_bytes: int
    pages: tuple[DocumentPage, ...]


class File(BaseModel):
    """What is known of a file. Times are seconds since 1970. It is stored in this form."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    filename: str
    """As the client named it; it names nothing on this machine."""
    purpose: Purpose
    bytes: int
    sha256: str
    created_at: float
    expires_at: float
    document: DocumentInfo | None = None
    """Of a document whose text was read on the server: the text is what is kept."""

    @classmethod
    def of(
        cls,
        data: Contents,
        owner: str,
        filename: str,
        purpose: Purpose,
        ttl_seconds: float,
        document: DocumentInfo | None = None,
    ) -> "File":
        """Return the description of a new file."""
        now = time.time()
        return cls(
            id=new_id(),
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_at=now,
            expires_at=now + ttl_seconds,
            document=document,
        )

    def has(self, data: Contents) -> bool:
        """Return whether these are its contents."""
        return hashlib.sha256(data).hexdigest() == self.sha256

    @property
    def page_starts(self) -> tuple[int, ...]:
        """First character of each page of its text; empty where it has no pages."""
        return () if self.document is None else tuple(page.start for page in self.document.pages)

    @property
    def is_expired(self) -> bool:
        """Whether its time to live is over."""
        return time.time() >= self.expires_at
