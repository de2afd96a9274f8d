"""A limit on the time that a client may take to receive a part of a response."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server.http.request_log import RequestLog

logger = logging.getLogger(__name__)


class SendTimeout:
    """Ends a request whose client does not read its response.

    Args:
        app: the application.
        seconds: maximum time for sending one message, head or part of a body, of a response.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_timed_out = False

        async def send_in_time(message: Message) -> None:
            nonlocal has_timed_out
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                has_timed_out = True
                raise

        try:
            await self.app(scope, receive, send_in_time)
        except Exception:  # the timeout itself, or what the application made of it
            if not has_timed_out:
                raise
            RequestLog.of(scope).hung_up = True
            request_id = scope.get("state", {}).get("request_id", "-")
            logger.warning("request %s: its client does not read the response", request_id)
