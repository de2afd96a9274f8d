"""Upload documents of any common type; their text is read on the server."""

from fastapi import APIRouter, Request

from refine_server.server.api.document_uploads_schema import (
    UPLOAD_DOCS,
    DocumentFields,
    DocumentResource,
)
from refine_server.server.api.files import FileId, fields_of
from refine_server.server.api.files_schema import MAX_FILENAME
from refine_server.server.files.conversion.found import ConversionError
from refine_server.server.files.file import DocumentInfo, DocumentPage
from refine_server.server.http.connections import cancel_on_disconnect
from refine_server.server.http.dependencies import ConverterDep, FilesDep, OwnerDep
from refine_server.server.http.errors import ApiError, documented
from refine_server.server.http.upload import read_upload

UPLOAD_PATH = "/v1/documents"
TOO_MUCH = ("file_too_large", "too_many_pages", "text_too_long", "too_slow", "too_much_memory")
"""Codes of files that exceed a limit: status 413, and 422 for all others."""

router = APIRouter(prefix=UPLOAD_PATH, tags=["documents"])


@router.post("", responses=documented(400, 408, 413, 422, 503), openapi_extra=UPLOAD_DOCS)
async def create_document(
    request: Request, owner: OwnerDep, files: FilesDep, converter: ConverterDep
) -> DocumentResource:
    """Read the text of a txt, md, html, docx or pdf file, and keep it for the caller alone.

    The text is a file of its own, listed and deleted with `/v1/files`. Of a PDF the response has
    the pages, and citations of answers on it name theirs. The file itself is not kept.
    """
    upload = await read_upload(request, "file")
    fields = fields_of(upload, DocumentFields)
    filename = upload.filename[:MAX_FILENAME] or "file"
    if not upload.data:
        raise ApiError(422, "file: is empty", "unsupported_file", param="file")
    files.require_place(owner, 0)
    try:
        async with cancel_on_disconnect(request.receive):
            found = await converter.convert(upload.data, filename)
    except ConversionError as error:
        status = 413 if error.code in TOO_MUCH else 422
        message = f"file: {filename!r} {error.reason}"
        raise ApiError(status, message, error.code, param="file") from None
    pages = (DocumentPage(start=page.start, has_text=page.has_text) for page in found.pages)
    file = await files.create(
        found.text.encode(),
        owner=owner,
        filename=filename,
        purpose="user_data",
        ttl_seconds=fields.expires_after.seconds if fields.expires_after else None,
        document=DocumentInfo(
            kind=found.kind,
            title=found.title,
            uploaded_bytes=len(upload.data),
            pages=tuple(pages),
        ),
    )
    return DocumentResource.of(file, found.text)


@router.get("/{file_id}", responses=documented(404, 409, 422, 503))
async def get_document(file_id: FileId, owner: OwnerDep, files: FilesDep) -> DocumentResource:
    """Return the text of a document or of a text file, with its pages."""
    file = await files.get(owner, file_id, "file_id")
    return DocumentResource.of(file, await files.read_text(file, "file_id"))
