"""What can go wrong between a client and a server, each its own type."""

from typing import Any

import httpx

from refine_server.clients.types import Adaptation


class ClientError(Exception):
    """A request that brought no answer.

    Attributes:
        status: of the HTTP response; None when there was none, or it had begun well.
        code, param: the server's words: what kind of error, and which field is at fault.
        request_id: under which the server's log knows the request.
    """

    def __init__(
        self,
        message: str,
        code: str | None = None,
        param: str | None = None,
        *,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.status = status
        self.request_id = request_id


class InvalidRequestError(ClientError):
    """The request cannot be served as it is; ``param`` names the field at fault."""


class AuthenticationError(ClientError):
    """The API key is missing or wrong."""


class NotFoundError(ClientError):
    """There is no such model, adaptation or path."""


class RateLimitError(ClientError):
    """Too much is asked at the moment; nothing was done."""


class UnavailableError(ClientError):
    """The server is starting, stopping or broken."""


class ServerError(ClientError):
    """The server failed."""


class RequestTimeoutError(ClientError):
    """The server gave up because the request took too long."""


class AdaptationFailedError(ClientError):
    """An adaptation that was waited for failed or was cancelled."""


class ConnectionFailedError(ClientError):
    """No server answers there, or the connection broke."""


class SilenceError(ConnectionFailedError):
    """The server fell silent for longer than the client waits."""


class ProtocolError(ConnectionFailedError):
    """What answers does not speak like a refine-server."""


BY_TYPE: dict[str, type[ClientError]] = {
    "invalid_request_error": InvalidRequestError,
    "authentication_error": AuthenticationError,
    "not_found_error": NotFoundError,
    "rate_limit_error": RateLimitError,
    "unavailable_error": UnavailableError,
    "internal_error": ServerError,
    "timeout_error": RequestTimeoutError,
}
BY_STATUS: dict[int, type[ClientError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    429: RateLimitError,
    503: UnavailableError,
    504: RequestTimeoutError,
}


def refusal(reply: httpx.Response) -> ClientError:
    """The error that an HTTP response tells; its body must have been read."""
    try:
        return failure(reply.json(), reply)
    except (ValueError, TypeError, KeyError, AttributeError):
        message = f"the server answered {reply.status_code} {reply.reason_phrase}"
        kind = BY_STATUS.get(reply.status_code, _family(reply.status_code))
        return kind(message, status=reply.status_code, request_id=_request_id(reply))


def failure(body: dict[str, Any], reply: httpx.Response) -> ClientError:
    """The error in a body ``{"error": …}``, of a response or of an event in its stream."""
    error = body["error"]
    status = reply.status_code if reply.is_error else None
    kind = BY_TYPE.get(error.get("type"), ClientError if status is None else _family(status))
    return kind(
        error["message"],
        error.get("code"),
        error.get("param"),
        status=status,
        request_id=_request_id(reply),
    )


def ready(adaptation: Adaptation) -> Adaptation:
    """An adaptation that has ended, if it can be asked."""
    if adaptation.status == "ready":
        return adaptation
    why = adaptation.error
    if why is None:
        raise AdaptationFailedError(f"the adaptation {adaptation.id} was {adaptation.status}")
    raise AdaptationFailedError(why.message, why.code, why.param)


def broken(url: str, error: Exception) -> ClientError:
    """The error for what httpx raises when a server at ``url`` was asked."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectionFailedError(f"no server answers at {url}: {error}")
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return ConnectionFailedError(f"{url!r} is no address of a server: {error}")
    if isinstance(error, httpx.TimeoutException):
        return SilenceError(f"the server at {url} fell silent")
    if isinstance(error, httpx.HTTPError):
        return ConnectionFailedError(f"the connection to {url} broke: {error}")
    return ProtocolError(f"{url} does not speak like a refine-server: {error}")


def _family(status: int) -> type[ClientError]:
    if status < 500:
        return BY_STATUS.get(status, InvalidRequestError)
    return BY_STATUS.get(status, ServerError)


def _request_id(reply: httpx.Response) -> str | None:
    given: str | None = reply.headers.get("x-request-id")
    return given
