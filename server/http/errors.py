"""Every error as ``{"error": {"message", "type", "param", "code"}}`` with the right status."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from refine_server.server.http.moved import KINDS, MOVED
from refine_server.ttt.interface.errors import TOO_LONG, RequestError

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
"""Of errors that Starlette and FastAPI raise themselves."""
NO_OBJECT = ("model_type", "model_attributes_type")
"""Pydantic's errors for a value that is no object, where it should be one."""
RETRY_SECONDS = 5
"""When to ask again a server that is starting, stopping or broken; nobody knows better."""


class ErrorDetail(BaseModel):
    """What went wrong. ``param`` is the dotted path of the field at fault, if one is."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """The body of every error response, and the data of every ``error`` event."""

    error: ErrorDetail


class ApiError(Exception):
    """An error as the client will see it."""

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
        """The body in ASCII, as a name quoted from a request may hold lone surrogates."""
        return json.dumps(self.body.model_dump())

    def response(self) -> Response:
        """The error as an HTTP response."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if not self.should_retry:
            headers["x-should-retry"] = "false"  # OpenAI's clients heed it
        return Response(self.json, self.status, headers, media_type="application/json")


def unauthorized() -> ApiError:
    """401: no key, or nobody's; which of the two is not told."""
    message = "A valid API key is needed: Authorization: Bearer <key>, or x-api-key: <key>."
    return ApiError(401, message, "invalid_api_key")


def queue_full(retry_after: int) -> ApiError:
    """429: as many requests wait as may."""
    message = f"The queue is full. Try again in {retry_after} s."
    return ApiError(429, message, "queue_full", retry_after=retry_after)


def unavailable(message: str, code: str) -> ApiError:
    """503: no request is being served now."""
    return ApiError(503, message, code, retry_after=RETRY_SECONDS)


def shutting_down() -> ApiError:
    """503: the process is about to end."""
    return unavailable("The server is shutting down.", "shutting_down")


def timed_out(seconds: float) -> ApiError:
    """504: the request took longer than a request may."""
    return ApiError(504, f"The request took longer than {seconds:g} s.", "timeout")


def internal() -> ApiError:
    """500, without internals: the log has them, under the request's id."""
    return ApiError(500, "Internal error. The server's log has the details.", "internal_error")


def failed_working(error: Exception) -> ApiError:
    """What a client is told of an exception in the model's work, which alone fails."""
    if is_out_of_memory(error):
        return unavailable("There is not enough memory for this request.", "out_of_memory")
    return internal()


def after_adapting(error: Exception) -> Exception:
    """The same error, for a request that has adapted: a client's retry would pay for it again."""
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
    """Whether an exception, of Python or of torch on any device, says that memory ran out."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def no_adaptation(adaptation_id: str) -> ApiError:
    """404: it never was, has expired, was deleted, or is somebody else's."""
    message = f"There is no adaptation {adaptation_id!r}."
    return ApiError(404, message, "adaptation_not_found", param="adaptation")


def adaptation_failed(adaptation_id: str, cause: ApiError | None) -> ApiError:
    """409: an adaptation that can answer nothing."""
    reason = "it was cancelled" if cause is None else f"it failed: {cause}"
    message = f"The adaptation {adaptation_id!r} cannot be used: {reason}"
    return ApiError(409, message, "adaptation_failed", param="adaptation", should_retry=False)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        too_long = 400 if error.code == TOO_LONG else 413  # OpenAI's clients know the former
        status = too_long if error.code.endswith(("_too_long", TOO_LONG)) else 422
        return ApiError(status, str(error), error.code, param=error.param)
    return internal()


def invalid_body(errors: Sequence[Any]) -> ApiError:
    """What pydantic found wrong with a request: ``param`` names the first field, all are told."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        message = f"The body is not valid JSON: {reason} at character {first['loc'][-1]}."
        return ApiError(400, message, "invalid_json")
    if _path(first["loc"]) == "body":
        message = "The body must be a JSON object, sent with content-type: application/json."
        if first["type"] == "string_unicode":
            message = "The name of a field is not Unicode text."
        return ApiError(422, message, "invalid_body", param="body")
    told = [f"{_path(error['loc'])}: {_reason(error)}" for error in errors]
    code = "unknown_field" if first["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(422, "; ".join(told), code, param=_path(first["loc"]))


def _path(location: Sequence[int | str]) -> str:
    parts = [str(part) for part in location]
    # The kind of `on` that pydantic found is a part of the location, and is no field.
    steps = pairwise(["", *parts])
    fields = [part for before, part in steps if before != "on" or part not in KINDS]
    return ".".join(fields[1:] if fields[0] == "body" and len(fields) > 1 else fields)


def _reason(error: Any) -> str:
    *above, name = error["loc"]
    is_unfit = error["type"] in ("extra_forbidden", *NO_OBJECT)
    if is_unfit and above[-1:] == ["adapt"] and name in MOVED:
        return f"moved to {_path(above)}.{MOVED[name]}"
    match error["type"]:
        case "extra_forbidden":
            return "there is no such field"
        case kind if kind in NO_OBJECT:
            return "must be an object"
        case "union_tag_invalid":
            return f"kind must be one of {error['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return "it needs a kind"
    return str(error["msg"])


def install(app: FastAPI) -> None:
    """Answer every exception that a route can raise."""

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
    """OpenAPI's description of the errors that a route may answer with."""
    return {
        status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
        for status in statuses
    }
