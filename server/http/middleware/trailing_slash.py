"""Paths that end with a slash, as clients make of a base URL that does."""

from starlette.types import ASGIApp, Receive, Scope, Send


class TrailingSlash:
    """Drops slashes at the end of a path.

    A redirect would not do: many clients do not follow one of a POST, and behind a proxy the server
    does not know its own address.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = scope["path"].rstrip("/") or "/"
        await self.app(scope, receive, send)
