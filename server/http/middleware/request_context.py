"""Every request's id, its line in the log, its metrics, and a response if it crashes."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server.http import errors
from refine_server.server.metrics import Metrics

logger = logging.getLogger(__name__)

CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Request ids that are taken from a client's ``x-request-id``; they are safe to log."""


class RequestContext:
    """Gives a request its id, logs and measures it, and answers 500 if it crashes.

    The id is in ``request.state.request_id`` and in the response's header ``x-request-id``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
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
        # The route's template, not the path: clients choose paths, and each would be a new series.
        endpoint = getattr(scope.get("route"), "path", "unmatched")
        code = "none" if status is None else str(status)
        self.metrics.requests.labels(endpoint, code).inc()
        self.metrics.request_seconds.labels(endpoint).observe(seconds)
        owner = scope["state"].get("owner", "-")
        fields = (request_id, owner, scope["method"], endpoint, code, seconds)
        logger.info("%s %s %s %s %s %.3fs", *fields)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if CLIENT_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
