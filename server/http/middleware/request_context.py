"""Every request's id, its line in the log, its metrics, and a response if it crashes."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server.http import errors
from refine_server.server.http.endpoints import Endpoints
from refine_server.server.http.request_log import PROBES, TRACE_ID, RequestLog
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.tracing.tracing import Tracing

logger = logging.getLogger(__name__)

HUNG_UP = 499
"""Status of a request whose client left before the end of its response, as in nginx."""
CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Request ids that are taken from a client's ``x-request-id``; they are safe to log."""
NOBODY = "-"
"""In place of an API key's name, where there was no valid key. No key can have this name."""


class RequestContext:
    """Gives a request its id, logs and measures it, and answers 500 if it crashes.

    The id is in ``request.state.request_id`` and in the response's header ``x-request-id``; when it
    arrived is in ``request.state.arrived``, in monotonic seconds. What a route writes to
    ``request.state.warning`` is logged, and sent in ``x-refine-warning``. If traces are recorded,
    the response's ``traceparent`` names the request's span.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        endpoints: Endpoints,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.endpoints = endpoints
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        began = time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, arrived=began)
        status: int | None = None
        trace = None if self.tracing is None else self.tracing.current()
        if trace is not None:
            TRACE_ID.set(trace.trace_id)
        log = RequestLog.of(scope)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if trace is not None:
                    headers["traceparent"] = trace.traceparent
                if (warning := scope["state"].get("warning")) is not None:
                    headers["x-refine-warning"] = warning
                    logger.warning("request %s: %s", request_id, warning)
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                log.has_ended = True

        async def receive_to_its_end() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not log.has_ended:
                log.hung_up = True
            return message

        try:
            await self.app(scope, receive_to_its_end, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status is None:
                await errors.internal().response()(scope, receive, send_with_id)
        finally:
            self._record(scope, request_id, status, time.monotonic() - began)

    def _record(self, scope: Scope, request_id: str, status: int | None, seconds: float) -> None:
        log = RequestLog.of(scope)
        log.error = log.error or scope["state"].get("error_code")
        if log.hung_up:
            status = HUNG_UP
        endpoint = self.endpoints.of(scope)
        code = "none" if status is None else str(status)
        self.metrics.requests.labels(endpoint, code).inc()
        self.metrics.request_seconds.labels(endpoint).observe(seconds)
        if endpoint not in PROBES and log.error is not None and _is_refusal(status):
            self.metrics.rejections.labels(log.error, scope["state"].get("owner", NOBODY)).inc()
        level = logging.DEBUG if endpoint in PROBES else logging.INFO
        address = scope.get("client")
        more = {
            "client": address and address[0],
            "key": scope["state"].get("owner"),
            "status": status,
            "seconds": round(seconds, 3),
            **log.fields(),
            "request_id": request_id,
        }
        more = {name: value for name, value in more.items() if value is not None}
        logger.log(level, "%s %s %s", scope["method"], endpoint, code, extra=more)


def _is_refusal(status: int | None) -> bool:
    """Return whether a status means that the request was not served, for no fault in serving it."""
    return status is not None and (400 <= status < 500 or status == 503)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if CLIENT_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
