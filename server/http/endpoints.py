"""Which route a path belongs to, also where a request was refused before it was routed."""

from collections.abc import Iterable

from fastapi import APIRouter
from starlette.routing import Route
from starlette.types import Scope

UNMATCHED = "unmatched"
"""Endpoint of a path that no route has."""


class Endpoints:
    """The templates of all routes' paths, such as ``/v1/files/{file_id}``.

    Logs and metrics name a template, not the path: clients choose paths, and each would be a series
    of its own.
    """

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        routes = [route for router in routers for route in router.routes]
        self._paths = [(r.path_regex, r.path) for r in routes if isinstance(r, Route)]

    def of(self, scope: Scope) -> str:
        """Return the template of a request's path."""
        path = getattr(scope.get("route"), "path", None)
        if path is None:  # it was refused by a middleware, or no route has the path
            found = (path for regex, path in self._paths if regex.match(scope["path"]))
            path = next(found, UNMATCHED)
        return str(path)
