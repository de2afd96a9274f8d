"""Paths as clients and proxies make them of a base URL."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

ORIGIN = re.compile("https?://[^/]*", re.IGNORECASE)
"""What precedes the path in a target in absolute form (RFC 9112, section 3.2.2)."""


class PathNormalization:
    """Drops slashes at the end of a path, those that repeat another, and an origin before it.

    A base URL that ends with a slash makes the former. Clients that take the server for a proxy
    send the whole URL, which servers must accept. A redirect would not do: many clients do not
    follow one of a POST, and behind a proxy the server does not know its own address.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            origin = ORIGIN.match(scope["path"])
            path = scope["path"][origin.end() :] if origin else scope["path"]
            scope["path"] = re.sub("//+", "/", path).rstrip("/") or "/"
        await self.app(scope, receive, send)
