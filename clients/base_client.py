"""The part of a client that does no I/O: address, retries, decoding, and translated errors."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
from pydantic import ValidationError

from refine_server.clients import errors, sse
from refine_server.clients.arguments import encode_key, parse_url
from refine_server.clients.calls import Request, Stream
from refine_server.clients.errors import ProtocolError, RateLimitError, UnavailableError
from refine_server.clients.session import HEADER, session_of

KEY_VARIABLE = "REFINE_API_KEY"
CONNECT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 60.0
"""On an open stream the server sends something every 2 seconds."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

E = TypeVar("E")


class BaseClient:
    """What the synchronous and the asynchronous client share."""

    def __init__(
        self, url: str, api_key: str | None, read_timeout_seconds: float, attempts: int
    ) -> None:
        self.url = url
        self._base_url = parse_url("url", url)
        self._timeout = httpx.Timeout(read_timeout_seconds, connect=CONNECT_SECONDS)
        self._headers = {}
        if api_key:
            self._headers["authorization"] = encode_key("api_key", api_key)
        elif from_environment := os.environ.get(KEY_VARIABLE):
            self._headers["authorization"] = encode_key(KEY_VARIABLE, from_environment)
        self._retries = Retries(attempts)

    @property
    def _trust_env(self) -> bool:
        """Whether a proxy of the environment is used; none reaches this machine's own servers."""
        host = self._base_url.host
        return not (host in {"localhost", "::1"} or host.startswith("127."))

    def _build(self, http: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
        headers = {} if request.content is None else {"content-type": "application/json"}
        session = session_of(self._headers.get("authorization"), request.about)
        if session is not None:
            headers[HEADER] = session
        files = None if request.file is None else {"file": request.file}
        return http.build_request(
            request.method, request.path, content=request.content, files=files, headers=headers
        )

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise the clients' own errors for those of httpx, and of parsing a response."""
        try:
            yield
        except httpx.HTTPError as error:
            raise errors.from_httpx(error, self.url) from None
        except ValidationError as error:
            path = ".".join(str(part) for part in error.errors()[0]["loc"])
            message = f"{self.url} does not answer like a refine-server: "
            message += f"the field {path} of its {error.title} is missing or of another type"
            raise ProtocolError(message) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{self.url} does not answer like a refine-server: {error}"
            raise ProtocolError(message) from None


class EventDecoder(Generic[E]):
    """Decodes the typed events of a stream from the chunks of its response."""

    def __init__(self, stream: Stream[E, Any], response: httpx.Response) -> None:
        self.has_ended = False
        """Whether the event that ends the stream has come."""
        self._stream = stream
        self._response = response
        self._parser = sse.Parser()

    def feed(self, chunk: bytes) -> Iterator[E]:
        """Yield the events that end within a chunk, none after the stream's last one.

        Raises:
            ResponseError: the server reports an error.
        """
        for event in self._parser.feed(chunk):
            data = json.loads(event.data)
            if event.event == "error":
                raise errors.from_body(data, self._response)
            decoded = self._stream.decode(event.event, data)
            self.has_ended = isinstance(decoded, self._stream.last)
            yield decoded
            if self.has_ended:
                return

    def check_end(self) -> None:
        """Raise ProtocolError if the response ended before its last event."""
        if not self.has_ended:
            raise ProtocolError("the server ended the stream before its last event")


@dataclass(frozen=True, slots=True)
class Retries:
    """Decides when a failed request is sent again: never once an adaptation may have begun.

    A connection that was not made has cost nothing. A server sends 429 and 503 with
    ``Retry-After`` before work begins, unless it adds ``x-should-retry: false``. Every other
    failure of a request that was sent is final, except for repeatable ones.
    """

    attempts: int
    """How often a request is sent at most."""

    def pause(self, request: Request, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, None for an error that is final.

        Args:
            request: the request that failed.
            attempt: how often it was sent, counted from 1.
            error: an ``httpx.HTTPError`` or a ``ResponseError``.
        """
        if attempt >= self.attempts:
            return None
        if isinstance(error, RateLimitError | UnavailableError):
            seconds = error.retry_after
            return seconds if seconds is not None and seconds <= LONGEST_PAUSE_SECONDS else None
        if not _may_repeat(request, error):
            return None
        spread = random.uniform(0.75, 1.0)  # so that many clients do not return at the same time
        return float(min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS) * spread)


def _may_repeat(request: Request, error: Exception) -> bool:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return True
    return request.repeatable and isinstance(error, httpx.TransportError)
