"""Who sends a request: its API key and the quotas of that key."""

from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from refine_server.server.access.keys import Keyring
from refine_server.server.access.quotas import QuotaKeeper
from refine_server.server.http import errors
from refine_server.server.ui.page import is_page

OPEN_PATHS = ("/health/live", "/health/ready")
"""Paths that need no key: probes have none, and learn only whether the server serves."""


class Authentication:
    """Identifies the owner of a request's key and counts the request against the key's quotas.

    Sets ``request.state.principal`` and ``.owner``. Answers 401 if the key is missing or unknown,
    before anything else of the request is looked at, and 429 if a quota is used up.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, quotas: QuotaKeeper) -> None:
        self.app = app
        self.keyring = keyring
        self.quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or is_page(scope["path"]):
            await self.app(scope, receive, send)
            return
        principal = self.keyring.identify(_api_key(Headers(scope=scope)))
        if principal is None:
            response = errors.unauthorized().response()
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        scope["state"].update(principal=principal, owner=principal.name)
        with ExitStack() as stack:
            try:
                stack.enter_context(self.quotas.request(principal))
            except errors.ApiError as error:
                await error.response()(scope, receive, send)
                return
            await self.app(scope, receive, send)


def _api_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key")
