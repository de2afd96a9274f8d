"""Asking a server, and following its work."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from refine_server.clients import sse

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""The server sends something every 15 seconds while a stream is open, if only a comment."""


class ClientError(Exception):
    """A request that brought no answer. ``code`` and ``param`` are the server's words, if any."""

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def stream_answer(url: str, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Post a question and yield the stream's events: (name, data), ``answer.completed`` last.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        body: of ``POST /v1/answers``.

    Raises:
        ClientError: the server refused, failed, went away or is not there.
    """
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    address = f"{url.rstrip('/')}/v1/answers"
    asked = {**body, "stream": True}
    with (
        _transport_errors(url),
        httpx.Client(timeout=timeout, trust_env=not _is_loopback(url)) as client,
        client.stream("POST", address, json=asked) as reply,
    ):
        if reply.is_error:
            reply.read()
            raise _refusal(reply)
        for event in sse.parse(reply.iter_bytes()):
            data = json.loads(event.data)
            if event.event == "error":
                raise _failure(data)
            yield event.event, data
            if event.event == "answer.completed":
                return
    raise ClientError("the server ended the stream without an answer")


def is_ready(url: str) -> bool:
    """Whether a server is there and takes requests."""
    address = f"{url.rstrip('/')}/health/ready"
    try:
        reply = httpx.get(address, timeout=CONNECT_SECONDS, trust_env=not _is_loopback(url))
        return reply.is_success
    except httpx.HTTPError:
        return False


def wait_until_ready(url: str, poll_seconds: float = 0.2) -> Iterator[float]:
    """Poll a server until it takes requests; yields the seconds waited so far at each poll."""
    began = time.monotonic()
    while not is_ready(url):
        yield time.monotonic() - began
        time.sleep(poll_seconds)


def _is_loopback(url: str) -> bool:
    """A proxy from the environment cannot reach this machine's own servers."""
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


@contextmanager
def _transport_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        raise ClientError(f"no server answers at {url}: {error}") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ClientError(f"{url!r} is no address of a server: {error}") from None
    except httpx.TimeoutException:
        raise ClientError(f"the server at {url} fell silent") from None
    except httpx.HTTPError as error:
        raise ClientError(f"the connection to {url} broke: {error}") from None
    except ValueError as error:
        raise ClientError(f"{url} does not speak like a refine-server: {error}") from None


def _refusal(reply: httpx.Response) -> ClientError:
    try:
        return _failure(reply.json())
    except (ValueError, TypeError, KeyError):
        return ClientError(f"the server answered {reply.status_code} {reply.reason_phrase}")


def _failure(body: dict[str, Any]) -> ClientError:
    error = body["error"]
    return ClientError(error["message"], error.get("code"), error.get("param"))
