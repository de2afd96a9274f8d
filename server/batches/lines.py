"""The lines of a batch: what its input has, and what its outputs say."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from refine_server.server.http.errors import ApiError
from refine_server.server.http.json_body import parse_json
from refine_server.server.http.middleware.json_structure import JsonStructure
from refine_server.server.http.validation import invalid_body
from refine_server.ttt.interface.strict import StrictModel

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


CustomId = Annotated[str, Field(min_length=1, max_length=512)]


class _Named(TypedDict):
    custom_id: CustomId


_NAMED = TypeAdapter(_Named)


class Request(StrictModel):
    """One line of the input."""

    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of a request."""

    status: int
    content: str
    """The response's body, as JSON."""
    request_id: str
    """Tells the request in the log."""
    code: str | None = None
    """The code of an error."""
    retry_after: float | None = None
    """Seconds after which the request can be sent again, if it was refused before any work."""


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of an input with their numbers, from 1 on; empty ones are left out."""
    for number, line in enumerate(data.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if line := line.strip():
            yield number, line


def custom_id_of(line: bytes) -> str | None:
    """Return what the client calls a line, None if it does not say it.

    The line need not be a request: whoever reads its error knows it by this name.
    """
    try:
        value = json.loads(line.decode(errors="surrogateescape"))
        return _NAMED.validate_python(value)["custom_id"]
    except (RecursionError, ValueError):
        return None


def parse(line: bytes, endpoint: str, max_bytes: int) -> Request:
    """Return the request of a line.

    Args:
        line: its bytes.
        endpoint: the route of all lines.
        max_bytes: the longest line.

    Raises:
        ApiError: the line is too long, or is no such request.
    """
    if len(line) > max_bytes:
        message = f"The line is longer than this server's limit of {max_bytes} bytes."
        raise ApiError(413, message, "body_too_large")
    structure = JsonStructure()
    structure.add(line)
    if structure.is_excessive:
        raise ApiError(413, "The line has too many values.", "body_too_large")
    try:
        value = parse_json(line)
    except JSONDecodeError as error:
        message = f"The line is not valid JSON: {error.msg} at character {error.pos}."
        raise ApiError(400, message, "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(422, "The line must be a JSON object.", "invalid_body")
    try:
        request = Request.model_validate(value)
    except ValidationError as error:
        located = [{**found, "loc": ("body", *found["loc"])} for found in error.errors()]
        raise invalid_body(located, value) from None
    if request.url != endpoint:
        message = f"url: must be that of the batch, {endpoint}"
        raise ApiError(422, message, "invalid_value", param="url")
    return request


def answered(custom_id: str, answer: Answer, number: int) -> bytes:
    """Return the line of an output; that of a request that failed says where it stands."""
    head: dict[str, object] = {"id": _new_id(), "custom_id": custom_id}
    if answer.status >= 400:
        head["line"] = number
    response = {"status_code": answer.status, "request_id": answer.request_id}
    # The body is JSON already.
    before = f'{json.dumps(head)[:-1]}, "response": {json.dumps(response)[:-1]}, "body": '
    return f'{before}{answer.content}}}, "error": null}}\n'.encode()


def refused(custom_id: str | None, error: ApiError, number: int) -> bytes:
    """Return the error line of a request that was not sent."""
    detail = error.body.error
    said = {"code": detail.code, "message": detail.message, "param": detail.param, "line": number}
    line = {
        "id": _new_id(),
        "custom_id": custom_id,
        "line": number,
        "response": None,
        "error": said,
    }
    return json.dumps(line).encode() + b"\n"


def _new_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"
