"""Paths as clients and proxies make them of a base URL."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

ORIGIN = re.compile("https?://[^/]*", re.IGNORECASE)
"""What precedes the path in a target in absolute form (RFC 9112, section 3.2.2)."""


class PathNormalization:
    """Drops slashes at the end of a path, those that repeat another, and what precedes it.

    That is an origin, or the path below which a proxy publishes the server.

    A base URL that ends with a slash makes the former. Clients that take the server for a proxy
    send the whole URL, which servers must accept. A redirect would not do: many clients do not
    follow one of a POST, and behind a proxy the server does not know its own address.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            origin = ORIGIN.match(scope["path"])
            path = scope["path"][origin.end() :] if origin else scope["path"]
            path = re.sub("//+", "/", path).rstrip("/")
            if f"{path}/".startswith(f"{self.root_path}/"):
                path = path.removeprefix(self.root_path)
            scope["path"] = path or "/"
            if self.root_path:
                scope["root_path"] = self.root_path
        await self.app(scope, receive, send)
