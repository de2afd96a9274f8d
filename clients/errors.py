"""The exceptions of both clients.

* ClientError
  x InvalidArgumentError
  x ResponseError
    + InvalidRequestError
    + AuthenticationError
    + NotFoundError
    + RateLimitError
    + UnavailableError
    + ServerError
    + RequestTimeoutError
    + AdaptationFailedError
  x ConnectionFailedError
    + ReadTimeoutError
    + ProtocolError
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from refine_server.clients.types import Adaptation


class ClientError(Exception):
    """Base class of all errors of the clients: a request brought no result.

    Example::

        try:
            answer = client.answer(query, document=text)
        except RateLimitError as error:
            print("busy, try again in", error.retry_after, "seconds")
        except ClientError as error:
            print("no answer:", error, error.code, error.request_id)
    """

    def __init__(
        self,
        message: str,
        code: str | None = None,
        param: str | None = None,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """The server's code of the error, such as ``document_too_long``."""
        self.param = param
        """The dotted path of the argument at fault, such as ``adapt.steps``."""
        self.status = status
        """The status of the HTTP response; None without one, or for an error within a stream."""
        self.request_id = request_id
        """The id under which the server logs the request."""
        self.retry_after = retry_after
        """Seconds after which the server says that the request may be sent again."""


class InvalidArgumentError(ClientError):
    """An argument cannot be encoded; ``param`` names it. Nothing was sent."""


# Errors that the server reports.


class ResponseError(ClientError):
    """Base class of the errors that the server reports."""


class InvalidRequestError(ResponseError):
    """The server cannot serve the request as it is; ``param`` names the field at fault."""


class AuthenticationError(ResponseError):
    """The API key is missing or wrong."""


class NotFoundError(ResponseError):
    """The model, the adaptation or the path does not exist."""


class RateLimitError(ResponseError):
    """The server has too many requests, or this key has used up its quota."""


class UnavailableError(ResponseError):
    """The server is starting, stopping or broken."""


class ServerError(ResponseError):
    """The server failed."""


class RequestTimeoutError(ResponseError):
    """The server gave the request up because it took too long."""


class AdaptationFailedError(ResponseError):
    """The adaptation that was waited for failed or was cancelled."""


# Errors of the connection.


class ConnectionFailedError(ClientError):
    """No server answers at the address, or the connection broke."""


class ReadTimeoutError(ConnectionFailedError):
    """The server sent nothing for longer than the client's ``read_timeout_seconds``."""


class ProtocolError(ConnectionFailedError):
    """The response is not one of a refine-server, or it ended too early."""


BY_TYPE: dict[str, type[ResponseError]] = {
    "invalid_request_error": InvalidRequestError,
    "authentication_error": AuthenticationError,
    "not_found_error": NotFoundError,
    "rate_limit_error": RateLimitError,
    "unavailable_error": UnavailableError,
    "internal_error": ServerError,
    "timeout_error": RequestTimeoutError,
}
BY_STATUS: dict[int, type[ResponseError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    429: RateLimitError,
    503: UnavailableError,
    504: RequestTimeoutError,
}


def from_response(response: httpx.Response) -> ResponseError:
    """Return the error that an HTTP response reports; its body must have been read."""
    try:
        return from_body(response.json(), response)
    except (ValueError, TypeError, KeyError, AttributeError):  # a proxy's page, say
        message = f"the server answered {response.status_code} {response.reason_phrase}"
        return _by_status(response.status_code)(message, **_head_of(response))


def from_body(body: dict[str, Any], response: httpx.Response) -> ResponseError:
    """Return the error in a body ``{"error": ...}``, of a response or of an event in its stream."""
    error = body["error"]
    fallback = _by_status(response.status_code) if response.is_error else ResponseError
    kind = BY_TYPE.get(error.get("type"), fallback)
    return kind(error["message"], error.get("code"), error.get("param"), **_head_of(response))


def from_httpx(error: httpx.HTTPError, url: str) -> ConnectionFailedError:
    """Return the error for what httpx raised about the server at a URL."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectionFailedError(f"no server answers at {url}: {error}")
    if isinstance(error, httpx.TimeoutException):
        return ReadTimeoutError(f"the server at {url} did not respond in time")
    return ConnectionFailedError(f"the connection to {url} broke: {error}")


def ready(adaptation: Adaptation) -> Adaptation:
    """Return an adaptation that has ended, if it is ready.

    Raises:
        AdaptationFailedError: it failed or was cancelled.
    """
    if adaptation.status == "ready":
        return adaptation
    failure = adaptation.error
    if failure is None:
        raise AdaptationFailedError(f"the adaptation {adaptation.id} was {adaptation.status}")
    raise AdaptationFailedError(failure.message, failure.code, failure.param)


def _by_status(status: int) -> type[ResponseError]:
    return BY_STATUS.get(status, InvalidRequestError if status < 500 else ServerError)


def _head_of(response: httpx.Response) -> dict[str, Any]:
    """Return the part of an error that the response's status and headers report."""
    may_retry = response.headers.get("x-should-retry") != "false"
    return {
        "status": response.status_code if response.is_error else None,
        "request_id": response.headers.get("x-request-id"),
        "retry_after": _retry_after(response.headers) if may_retry else None,
    }


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date (RFC 9110, section 10.2.3)."""
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", given):
        return float(given)
    until = _date(given)
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)  # clocks of two machines differ
    return max((until - now).total_seconds(), 0.0)


def _date(header: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
