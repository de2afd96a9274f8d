"""Forms with a file (multipart/form-data), as OpenAI's clients upload them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from refine_server.server.http.connections import ClientDisconnected
from refine_server.server.http.errors import ApiError

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096
OVERHEAD_BYTES = 64 * 1024
"""What a form may have beside the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A form with one file."""

    fields: dict[str, str]
    """All fields but the file, by name."""
    filename: str
    data: bytes


class _Parser(MultiPartParser):
    spool_max_size = 2**40
    """Files stay in memory: the size of a body is limited, and documents are not for /tmp."""


async def read_upload(request: Request, field: str) -> Upload:
    """Read a form whose file is in a field.

    Raises:
        ApiError: it is no such form, or a field is missing or given twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = f"The body must be a form with a field {field}, sent as multipart/form-data."
        raise ApiError(422, message, "invalid_body", param="body")
    async with _parsed(request) as form:
        fields: dict[str, str] = {}
        file: UploadFile | None = None
        for name, value in form.multi_items():
            if name in fields or (name == field and file is not None):
                raise _unfit(name[:64], "given more than once")
            if name != field and isinstance(value, str):
                fields[name] = value
            elif name == field and isinstance(value, UploadFile):
                file = value
            else:
                raise _unfit(name[:64], "must be a file" if name == field else "must be no file")
        if file is None:
            raise _unfit(field, "required")
        return Upload(fields=fields, filename=file.filename or "", data=await file.read())


@asynccontextmanager
async def _parsed(request: Request) -> AsyncIterator[FormData]:
    parser = _Parser(
        request.headers,
        request.stream(),
        max_files=MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except ClientDisconnect:
        raise ClientDisconnected from None
    except (MultiPartException, ValueError) as error:  # the latter of the form's own charset
        reason = str(getattr(error, "message", error))[:200]
        raise ApiError(400, f"The form cannot be read: {reason}", "invalid_body") from None
    try:
        yield form
    finally:
        await form.close()


def _unfit(param: str, reason: str) -> ApiError:
    return ApiError(422, f"{param}: {reason}", "invalid_value", param=param)
