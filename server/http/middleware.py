"""Around every request: its id, its log line, its metrics, who asks, and limits on its body."""

import asyncio
import logging
import re
import secrets
import time
from contextlib import ExitStack

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server.access.keys import Keyring
from refine_server.server.access.quotas import QuotaKeeper
from refine_server.server.http import errors
from refine_server.server.metrics import Metrics

logger = logging.getLogger(__name__)

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

OPEN_PATHS = ("/health/live", "/health/ready")
"""What needs no key: probes have none, and learn only whether the server serves."""

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
DOCS_PATHS = ("/docs", "/redoc")
DOCS_CSP = (
    "default-src 'self'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; "
    "font-src https://fonts.gstatic.com; img-src data: https://fastapi.tiangolo.com "
    "https://cdn.redoc.ly; worker-src blob:; frame-ancestors 'none'"
)
"""FastAPI's pages of documentation load their scripts from there."""


class RequestContext:
    """Gives a request its id, tells the log and the metrics of it, and turns a crash into a 500.

    A client that does not read for longer than it may is cut off.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_send_seconds: float) -> None:
        self.app = app
        self.metrics = metrics
        self.max_send_seconds = max_send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None
        is_read = True

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_read
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                _secure(headers, scope["path"])
            try:
                async with asyncio.timeout(self.max_send_seconds):
                    await send(message)
            except TimeoutError:
                is_read = False
                raise

        began = time.monotonic()
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            if not is_read:
                logger.warning("request %s: its client does not read", request_id)
                return
            logger.exception("request %s failed", request_id)
            if status is None:
                await errors.internal().response()(scope, receive, send_with_id)
        finally:
            self._record(scope, request_id, status, time.monotonic() - began)

    def _record(self, scope: Scope, request_id: str, status: int | None, seconds: float) -> None:
        # The template, not the path: clients choose paths, and each would be a series of its own.
        endpoint = getattr(scope.get("route"), "path", "unmatched")
        code = "none" if status is None else str(status)
        self.metrics.requests.labels(endpoint, code).inc()
        self.metrics.request_seconds.labels(endpoint).observe(seconds)
        owner = scope["state"].get("owner", "-")
        told = (request_id, owner, scope["method"], endpoint, code, seconds)
        logger.info("%s %s %s %s %s %.3fs", *told)


def _secure(headers: MutableHeaders, path: str) -> None:
    for name, value in SECURITY_HEADERS.items():
        headers[name] = value
    if path in DOCS_PATHS:
        headers["content-security-policy"] = DOCS_CSP


class Authentication:
    """Finds out who asks, as ``request.state.owner`` and ``.principal``, and counts it on the key.

    Answers 401 to whoever has no key, before anything else is looked at, and 429 over a quota.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, quotas: QuotaKeeper) -> None:
        self.app = app
        self.keyring = keyring
        self.quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        principal = self.keyring.identify(_given_key(Headers(scope=scope)))
        if principal is None:
            response = errors.unauthorized().response()
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        scope["state"].update(principal=principal, owner=principal.name)
        with ExitStack() as stack:
            try:
                stack.enter_context(self.quotas.request(principal))
            except errors.ApiError as refused:
                await refused.response()(scope, receive, send)
                return
            await self.app(scope, receive, send)


def _given_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key")


class BodyLimit:
    """Refuses a body over the limit with 413, by its declared length or as it arrives.

    One that takes longer than it may to arrive is refused with 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        deadline = asyncio.get_running_loop().time() + self.max_seconds
        received = 0
        is_whole = False

        async def limited() -> Message:
            nonlocal received, is_whole
            if is_whole:  # what comes now is the end of the connection
                return await receive()
            if declared.isdecimal() and int(declared) > self.max_bytes:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            is_whole = not message.get("more_body", False)
            return message

        await self.app(scope, limited, send)

    # FastAPI lets its own HTTPException through where it reads the body; others become 400.
    # The rest of the body is still to come, so the connection is of no more use.

    def _too_large(self) -> HTTPException:
        message = f"The body may have {self.max_bytes} bytes at most."
        return HTTPException(413, message, {"connection": "close"})

    def _too_slow(self) -> HTTPException:
        message = f"The body did not arrive within {self.max_seconds:g} s."
        return HTTPException(408, message, {"connection": "close"})
