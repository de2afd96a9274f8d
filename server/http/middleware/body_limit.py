"""Limits on the size and structure of a request's body and on the time that it takes to arrive."""

import asyncio
from collections.abc import Mapping

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server.http.middleware.json_structure import (
    MAX_STRUCTURE,
    MAX_VALUES,
    JsonStructure,
)


class BodyLimit:
    """Refuses a body that is too large with 413, and one that arrives too slowly with 408.

    A body is also too large if it has so many values that parsing it would keep others waiting.

    Args:
        app: the application.
        max_bytes: maximum size, checked against the declared length and as the body arrives.
        max_seconds: maximum time from the end of the request's head to the end of its body.
        uploads: maximum sizes of bodies that are no JSON, by the path of their route.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_seconds: float, uploads: Mapping[str, int]
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.uploads = uploads
        self.max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_json = scope["path"] not in self.uploads
        max_bytes = self.uploads.get(scope["path"], self.max_bytes)
        declared = Headers(scope=scope).get("content-length", "")
        deadline = asyncio.get_running_loop().time() + self.max_seconds
        received = 0
        structure = JsonStructure()
        is_complete = False

        async def receive_within_limits() -> Message:
            nonlocal received, is_complete
            if is_complete:  # the next message is the end of the connection
                return await receive()
            if declared.isdecimal() and int(declared) > max_bytes:
                raise self._too_large(max_bytes)
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            body = message.get("body", b"")
            received += len(body)
            if received > max_bytes:
                raise self._too_large(max_bytes)
            if is_json:
                structure.add(body)
            if structure.is_excessive:
                raise self._too_much_structure()
            is_complete = not message.get("more_body", False)
            return message

        await self.app(scope, receive_within_limits, send)

    # FastAPI reads the body, and turns every error there but its own HTTPException into a 400.
    # The rest of the body is still to come, so the connection cannot be used again.

    def _too_large(self, max_bytes: int) -> HTTPException:
        message = f"The body is larger than this server's limit of {max_bytes} bytes."
        return HTTPException(413, message, {"connection": "close"})

    def _too_much_structure(self) -> HTTPException:
        message = (
            f"The body has more than {MAX_VALUES} values, or more than {MAX_STRUCTURE} objects, "
            "arrays and fields. Send less in one request."
        )
        return HTTPException(413, message, {"connection": "close"})

    def _too_slow(self) -> HTTPException:
        message = f"The body did not arrive within {self.max_seconds:g} s."
        return HTTPException(408, message, {"connection": "close"})
