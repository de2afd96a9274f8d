"""The page's files. They have no data, so that no key is needed to load them."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).resolve().parent / "static"
"""What ``npm run build`` in ``web/`` writes: ``index.html``, and ``ui/`` with what it loads. An
editable installation has links to the files, which Starlette does not follow out of a folder."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content security policy: the page's own files alone, and no markup that is made from text.
Plots become PNG by way of an image with a ``blob:`` URL."""

PAGE_HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # files keep their names, so browsers ask whether they changed
}


def is_page(path: str) -> bool:
    """Return whether a path is the page's or that of a file that it loads."""
    return path == "/" or path.startswith("/ui/")


def install(app: FastAPI) -> None:
    """Serve the page at ``/``."""
    files = StaticFiles(directory=STATIC)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.mount("/ui", StaticFiles(directory=STATIC / "ui"), name="ui")
