"""Around every request: its id, its log line, its metrics, and the limit on its body."""

import logging
import re
import secrets
import time

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server import errors
from refine_server.server.metrics import Metrics

logger = logging.getLogger(__name__)

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestContext:
    """Gives a request its id, tells the log and the metrics of it, and turns a crash into a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        began = time.monotonic()
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
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
        logger.info("%s %s %s %s %.3fs", request_id, scope["method"], endpoint, code, seconds)


class BodyLimit:
    """Refuses a body over the limit with 413, by its declared length or as it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if declared.isdecimal() and int(declared) > self.max_bytes:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        # FastAPI lets its own HTTPException through where it reads the body; others become 400.
        return HTTPException(413, f"The body may have {self.max_bytes} bytes at most.")
