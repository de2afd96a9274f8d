"""Errors of the HTTP API: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

import json
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

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


class ApiError(HTTPException):
    """An error as a client receives it. FastAPI lets it pass where it reads a body, too.

    Args:
        status: HTTP status.
        message: what is wrong and what to change.
        code: stable name of the error.
        param: dotted path of the field at fault.
        retry_after: seconds after which the client should try again.
        should_retry: False tells OpenAI's clients not to retry by themselves.
        option: the option or the field that names the limit which was reached.
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
        option: str | None = None,
    ) -> None:
        super().__init__(status, message)
        self.option = option
        self.retry_after = retry_after
        self.should_retry = should_retry
        kind = TYPES.get(status, "invalid_request_error")
        self.body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))

    @override
    def __str__(self) -> str:
        return self.detail

    @property
    def json(self) -> str:
        """The body in ASCII, because a name quoted from a request may contain lone surrogates."""
        return json.dumps(self.body.model_dump())

    def response(self) -> "ErrorResponse":
        """Make the HTTP response of the error."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if not self.should_retry:
            headers["x-should-retry"] = "false"  # read by OpenAI's clients
        return ErrorResponse(self, headers)


class ErrorResponse(Response):
    """The response of an error; leaves the error's code in ``request.state.error_code``."""

    media_type = "application/json"

    def __init__(self, error: ApiError, headers: dict[str, str]) -> None:
        super().__init__(error.json, error.status_code, headers)
        self._code = error.body.error.code

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


def unauthorized() -> ApiError:
    """401: the key is missing or unknown; the message does not say which."""
    message = (
        "A valid API key is required. Send it as the header Authorization: Bearer <key> or "
        "x-api-key: <key>."
    )
    return ApiError(401, message, "invalid_api_key")


def _queue_full(message: str, retry_after: int, option: str) -> ApiError:
    return ApiError(429, message, "queue_full", retry_after=retry_after, option=option)


def queue_full(retry_after: int) -> ApiError:
    """429: as many requests wait as may."""
    message = f"The queue is full (--max-queue). Try again in {retry_after} s."
    return _queue_full(message, retry_after, "--max-queue")


def too_much_work(retry_after: int) -> ApiError:
    """429: as many seconds of work wait as may."""
    message = f"The queue is full (--max-queue-seconds). Try again in {retry_after} s."
    return ApiError(
        429, message, "queue_full", retry_after=retry_after, option="--max-queue-seconds"
    )


def too_late(retry_after: int) -> ApiError:
    """429: by the present estimate, the request would not end within its time limit."""
    message = (
        "The server is too busy to end this request within its time limit (timeout_seconds, at "
        f"most --request-timeout-seconds). Try again in {retry_after} s."
    )
    return ApiError(
        429, message, "queue_full", retry_after=retry_after, option="--request-timeout-seconds"
    )


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
        error.status_code,
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


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe, for OpenAPI, the errors that a route may answer with."""
    return {
        status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
        for status in statuses
    }
