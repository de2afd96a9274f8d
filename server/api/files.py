"""Upload files once, and name them as documents or as the input of batches."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from refine_server.server.api.files_schema import (
    MAX_FILENAME,
    UPLOAD_DOCS,
    FileDeleted,
    FileFields,
    FileList,
    FileResource,
)
from refine_server.server.api.paging import After, page
from refine_server.server.files.content import NoTextError, decode_text
from refine_server.server.files.file import Purpose
from refine_server.server.http.dependencies import FilesDep, OwnerDep
from refine_server.server.http.errors import ApiError, documented
from refine_server.server.http.upload import Upload, read_upload

UPLOAD_PATH = "/v1/files"

router = APIRouter(prefix=UPLOAD_PATH, tags=["files"])

FileId = Annotated[str, Path(max_length=128, description="The file's id.")]

Form = TypeVar("Form", bound=BaseModel)

CONTENT_TYPE = "application/octet-stream"


@router.post("", responses=documented(400, 408, 413, 422, 503), openapi_extra=UPLOAD_DOCS)
async def create_file(request: Request, owner: OwnerDep, files: FilesDep) -> FileResource:
    """Keep a text file, for the caller alone.

    It is kept in the server's store, if there is one, and otherwise in memory.
    """
    upload = await read_upload(request, "file")
    fields = fields_of(upload, FileFields)
    filename = upload.filename[:MAX_FILENAME] or "file"
    if not upload.data:
        raise ApiError(422, "file: is empty", "unsupported_file", param="file")
    try:
        decode_text(upload.data)
    except NoTextError as error:
        message = f"file: {filename!r} {error}"
        raise ApiError(422, message, "unsupported_file", param="file") from None
    file = await files.create(
        upload.data,
        owner=owner,
        filename=filename,
        purpose=fields.purpose,
        ttl_seconds=fields.expires_after.seconds if fields.expires_after else None,
    )
    return FileResource.of(file)


def fields_of(upload: Upload, form: type[Form]) -> Form:
    """Return the fields of a form; ``expires_after[seconds]`` is a field of an object."""
    nested: dict[str, str | dict[str, str]] = {}
    for name, value in upload.fields.items():
        above, bracket, inner = name.removesuffix("]").partition("[")
        inside = nested.setdefault(above, {}) if bracket and name.endswith("]") else None
        if isinstance(inside, dict):
            inside[inner] = value
        else:
            nested[name] = value
    try:
        return form.model_validate(nested)
    except ValidationError as error:
        located = [{**found, "loc": ("body", *found["loc"])} for found in error.errors()]
        raise RequestValidationError(located, body=nested) from None


@router.get("", responses=documented(404, 422, 503))
async def list_files(
    owner: OwnerDep,
    files: FilesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Purpose | None = None,
) -> FileList:
    """List the caller's files, the newest first."""
    own = [f for f in files.list(owner, order) if purpose is None or f.purpose == purpose]
    data, has_more = page(own, after, limit)
    resources = [FileResource.of(file) for file in data]
    return FileList(
        data=resources,
        first_id=resources[0].id if resources else None,
        last_id=resources[-1].id if resources else None,
        has_more=has_more,
    )


@router.get("/{file_id}", responses=documented(404, 422, 503))
async def get_file(file_id: FileId, owner: OwnerDep, files: FilesDep) -> FileResource:
    """Show what is known of a file."""
    return FileResource.of(await files.get(owner, file_id, "file_id"))


CONTENT_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file as it was uploaded.",
        "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get(
    "/{file_id}/content",
    response_model=None,
    response_class=Response,
    responses={**CONTENT_DOCS, **documented(404, 409, 422, 503)},
)
async def get_file_content(file_id: FileId, owner: OwnerDep, files: FilesDep) -> Response:
    """Return a file as it was uploaded."""
    file = await files.get(owner, file_id, "file_id")
    return Response(await files.read(file, "file_id"), media_type=CONTENT_TYPE)


@router.delete("/{file_id}", responses=documented(404, 422, 503))
async def delete_file(file_id: FileId, owner: OwnerDep, files: FilesDep) -> FileDeleted:
    """Delete a file. Requests and batches that have read it go on."""
    await files.delete(owner, file_id)
    return FileDeleted(id=file_id)
