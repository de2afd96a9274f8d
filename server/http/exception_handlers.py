"""What becomes of the exceptions of routes."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from refine_server.server.http.errors import ApiError, as_api_error
from refine_server.server.http.validation import invalid_body
from refine_server.ttt.interface.errors import RequestError

CODES = {
    400: "invalid_body",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
}
"""Codes of errors that Starlette and FastAPI raise, by status."""


def install(app: FastAPI) -> None:
    """Install the handlers that turn every exception of a route into a response."""

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestError)
    async def _request_error(_: Request, error: RequestError) -> Response:
        return as_api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> Response:
        return invalid_body(error.errors(), error.body).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, f"http_{error.status_code}")
        response = ApiError(error.status_code, str(error.detail), code).response()
        response.headers.update(error.headers or {})
        return response
