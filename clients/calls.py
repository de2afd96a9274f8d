"""What both clients share: addresses, bodies, timeouts, and which failures may be tried again."""

import os
import random
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from refine_server.clients.errors import ClientError, RateLimitError, UnavailableError

KEY_VARIABLE = "REFINE_API_KEY"
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""The server sends something every 15 seconds while a stream is open, if only a comment."""
LONGEST_PAUSE_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Call:
    """One HTTP request. ``repeatable`` ones do no more when they are sent twice."""

    method: str
    path: str
    json: dict[str, Any] | None = None
    repeatable: bool = field(default=False, kw_only=True)


def read(path: str) -> Call:
    """A request that only reads."""
    return Call("GET", path, repeatable=True)


def answer(query: str, options: Any) -> Call:
    """A question, answered as a stream: it shows at once when a server is gone."""
    return Call("POST", "/v1/answers", {"query": query, **options, "stream": True})


def adapt(document: str, options: Any) -> Call:
    """A document to adapt to. The server joins a second request with the first, so it repeats."""
    body = {"document": document, **options}
    return Call("POST", "/v1/adaptations", body, repeatable=True)


def adaptation(adaptation_id: str, suffix: str = "") -> Call:
    """What is known of an adaptation, or its events."""
    return read(f"/v1/adaptations/{quote(adaptation_id, safe='')}{suffix}")


def forget(adaptation_id: str) -> Call:
    """To cancel or delete an adaptation; not repeated, as the second time it is not there."""
    return Call("DELETE", f"/v1/adaptations/{quote(adaptation_id, safe='')}")


def tokenize(text: str) -> Call:
    """Text to tokens, without the special ones."""
    body = {"prompt": text, "add_special_tokens": False}
    return Call("POST", "/tokenize", body, repeatable=True)


def detokenize(tokens: list[int]) -> Call:
    """Tokens to text."""
    return Call("POST", "/detokenize", {"tokens": tokens}, repeatable=True)


def http_options(url: str, api_key: str | None, silence_seconds: float) -> dict[str, Any]:
    """Arguments of httpx's clients."""
    key = api_key or os.environ.get(KEY_VARIABLE)
    return {
        "base_url": url.rstrip("/"),
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
        "trust_env": not _is_loopback(url),
    }


@dataclass(frozen=True)
class Retries:
    """When a failed request is sent again: never once an adaptation may have begun.

    A connection that was not made has cost nothing. 429 and 503 with ``Retry-After`` are said
    before work begins, unless the server adds ``x-should-retry: false``. Whatever else happens to
    a request that was sent is final, but for one that does no more the second time.
    """

    attempts: int

    def pause(self, call: Call, tried: int, error: Exception) -> float | None:
        """Seconds to wait before the next try; None for an error that is final.

        Args:
            call: what was tried.
            tried: how often.
            error: of httpx, or a ``ClientError`` with ``retry_after`` set.
        """
        if tried >= self.attempts or not _may_repeat(call, error):
            return None
        asked = error.retry_after if isinstance(error, Refused) else None
        if asked is not None:
            return asked if asked <= LONGEST_PAUSE_SECONDS else None
        spread = random.uniform(0.75, 1.0)  # so that many clients do not come back as one
        return float(min(FIRST_PAUSE_SECONDS * 2 ** (tried - 1), LONGEST_PAUSE_SECONDS) * spread)


class Refused(Exception):
    """An error response, with what its headers say of trying again."""

    def __init__(self, error: ClientError, reply: httpx.Response) -> None:
        super().__init__(str(error))
        self.error = error
        self.final = reply.headers.get("x-should-retry") == "false"
        self.retry_after = _seconds(reply.headers.get("retry-after"))


def _may_repeat(call: Call, error: Exception) -> bool:
    if isinstance(error, Refused):
        begun = not isinstance(error.error, RateLimitError | UnavailableError)
        return not (begun or error.final or error.retry_after is None)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return True
    return call.repeatable and isinstance(error, httpx.TransportError)


def _seconds(header: str | None) -> float | None:
    try:
        return max(float(header), 0.0) if header is not None else None
    except ValueError:  # a date, which no refine-server sends
        return None


def _is_loopback(url: str) -> bool:
    """A proxy from the environment cannot reach this machine's own servers."""
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")
