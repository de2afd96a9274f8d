"""Errors of the HTTP API: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from refine_server.server.http.moved import KINDS, MOVED, REMOVED
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.evidence import MEASURES

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
}
CODES = {
    400: "invalid_body",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
}
"""Codes of errors that Starlette and FastAPI raise, by status."""
NO_OBJECT = ("model_type", "model_attributes_type")
"""Pydantic's errors for a value that is no object, where it should be one."""
NO_TAG = ("union_tag_invalid", "union_tag_not_found")
"""Pydantic's errors for a field that tells alternatives apart, such as ``kind``, and is unknown or
missing. They are located above it."""
TAGS = {"on": KINDS, "evidence": MEASURES}
"""Values of such fields, by what they are in. Pydantic has them in a location, but they are no
fields."""
MAX_NAME = 64
"""Characters of a field's name that an error repeats; a client may send any name."""
RETRY_SECONDS = 5
"""``Retry-After`` of a server that is starting, stopping or broken, which cannot estimate it."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="Human-readable text: what is wrong and what to change.")
    type: str = Field(description="Kind of error; it depends on the status alone.")
    param: str | None = Field(
        None, description="Dotted path of the request's field that is at fault, if there is one."
    )
    code: str = Field(description="Name of the error, for programs; it does not change.")


class ErrorBody(BaseModel):
    """The body of every error response, and the data of every ``error`` event."""

    error: ErrorDetail


class ApiError(Exception):
    """An error as a client receives it.

    Args:
        status: HTTP status.
        message: what is wrong and what to change.
        code: stable name of the error.
        param: dotted path of the field at fault.
        retry_after: seconds after which the client should try again.
        should_retry: False tells OpenAI's clients not to retry by themselves.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        should_retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.should_retry = should_retry
        kind = TYPES.get(status, "invalid_request_error")
        self.body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))

    @property
    def json(self) -> str:
        """The body in ASCII, because a name quoted from a request may contain lone surrogates."""
        return json.dumps(self.body.model_dump())

    def response(self) -> Response:
        """Make the HTTP response of the error."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if not self.should_retry:
            headers["x-should-retry"] = "false"  # read by OpenAI's clients
        return Response(self.json, self.status, headers, media_type="application/json")


def unauthorized() -> ApiError:
    """401: the key is missing or unknown; the message does not say which."""
    message = (
        "A valid API key is required. Send it as the header Authorization: Bearer <key> or "
        "x-api-key: <key>."
    )
    return ApiError(401, message, "invalid_api_key")


def queue_full(retry_after: int) -> ApiError:
    """429: the queue is full."""
    message = f"The queue is full. Try again in {retry_after} s."
    return ApiError(429, message, "queue_full", retry_after=retry_after)


def unavailable(message: str, code: str) -> ApiError:
    """503: the server cannot serve the request now."""
    return ApiError(503, message, code, retry_after=RETRY_SECONDS)


def shutting_down() -> ApiError:
    """503: the process is about to end."""
    return unavailable("The server is shutting down.", "shutting_down")


def timed_out(seconds: float) -> ApiError:
    """504: the request took longer than its time limit."""
    return ApiError(504, f"The request took longer than its limit of {seconds:g} s.", "timeout")


def internal() -> ApiError:
    """500: a bug or a failure; the details are in the log, under the request's id."""
    message = "Internal error. The server's log has the details, under the id in x-request-id."
    return ApiError(500, message, "internal_error")


def failed_working(error: Exception) -> ApiError:
    """Return the error for a client whose request failed in the model."""
    if is_out_of_memory(error):
        message = "The server has not enough memory for this request now."
        return unavailable(message, "out_of_memory")
    return internal()


def after_adapting(error: Exception) -> Exception:
    """Return the error without retry advice: a retry would repeat the adaptation, which is done."""
    if not isinstance(error, ApiError):
        return error
    detail = error.body.error
    return ApiError(
        error.status,
        detail.message,
        detail.code,
        param=detail.param,
        retry_after=error.retry_after,
        should_retry=False,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception, of Python or of torch on any device, means out of memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def no_adaptation(adaptation_id: str) -> ApiError:
    """404: it never existed, has expired, was deleted, or belongs to another owner."""
    message = f"There is no adaptation {adaptation_id!r}. It may have expired; adapt again."
    return ApiError(404, message, "adaptation_not_found", param="adaptation")


def adaptation_failed(adaptation_id: str, cause: ApiError | None) -> ApiError:
    """409: the adaptation failed or was cancelled, so that it cannot answer."""
    reason = "it was cancelled." if cause is None else f"it failed: {cause}"
    message = f"The adaptation {adaptation_id!r} cannot be used: {reason}"
    return ApiError(409, message, "adaptation_failed", param="adaptation", should_retry=False)


def as_api_error(error: Exception) -> ApiError:
    """Return the error that a client receives for any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        too_long = 400 if error.code == TOO_LONG else 413  # OpenAI's clients know the former
        status = too_long if error.code.endswith(("_too_long", TOO_LONG)) else 422
        return ApiError(status, str(error), error.code, param=error.param)
    return internal()


def invalid_body(errors: Sequence[Any]) -> ApiError:
    """Return the error for what pydantic found wrong with a request.

    The message names the first 20 fields at fault, ``param`` and ``code`` the first one.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        message = f"The body is not valid JSON: {reason} at character {first['loc'][-1]}."
        return ApiError(400, message, "invalid_json")
    if _path(first["loc"]) == "body":
        message = "The body must be a JSON object, sent with content-type: application/json."
        if first["type"] == "string_unicode":
            message = "The name of a field is not valid Unicode text."
        return ApiError(422, message, "invalid_body", param="body")
    problems = [f"{_field(error)}: {_reason(error)}" for error in errors[:20]]
    code = "unknown_field" if first["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(422, "; ".join(problems), code, param=_field(first))


def _field(error: Any) -> str:
    path = _path(error["loc"])
    if error["type"] not in NO_TAG:
        return path
    name = error["ctx"]["discriminator"].strip("'")
    return f"{path}.{name}"


def _path(location: Sequence[int | str]) -> str:
    parts = [str(part)[:MAX_NAME] for part in location]
    steps = pairwise(["", *parts])
    fields = [part for before, part in steps if part not in TAGS.get(before, ())]
    return ".".join(fields[1:] if fields[0] == "body" and len(fields) > 1 else fields)


def _reason(error: Any) -> str:
    *above, name = error["loc"]
    is_unfit = error["type"] in ("extra_forbidden", *NO_OBJECT)
    if is_unfit and above[-1:] == ["adapt"]:
        if name in MOVED:
            return f"moved to {_path(above)}.{MOVED[name]}"
        if name in REMOVED:
            return REMOVED[name]
    match error["type"]:
        case "extra_forbidden":
            return "there is no such field"
        case kind if kind in NO_OBJECT:
            return "must be an object"
        case "union_tag_invalid":
            return f"must be one of {error['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return "required"
    return str(error["msg"]).removeprefix("Value error, ")  # of our own validators


def install(app: FastAPI) -> None:
    """Install the handlers that turn every exception of a route into a response."""

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestError)
    async def _request_error(_: Request, error: RequestError) -> Response:
        return as_api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> Response:
        return invalid_body(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, f"http_{error.status_code}")
        response = ApiError(error.status_code, str(error.detail), code).response()
        response.headers.update(error.headers or {})
        return response


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe, for OpenAPI, the errors that a route may answer with."""
    return {
        status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
        for status in statuses
    }
