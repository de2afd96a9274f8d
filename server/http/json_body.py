"""How the JSON body of a request is read, before its fields are validated.

JSON leaves some things open, and clients use all of it. Here they are decided once, for every field
of every route: null is the same as leaving a field out, a whole number is an integer however it is
written (``16.0``), and a text is valid Unicode. A JSON schema is left as it is, because null is a
value like others in it (``{"const": null}``).
"""

import json
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.routing import APIRoute
from typing_extensions import override

from refine_server.server.http.errors import ApiError
from refine_server.server.http.validation import field_path

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that is half of a character. A valid pair of them is found as well."""
LARGEST = 2.0**63
"""Magnitude from which on a float is no integer of the contract."""
SCHEMAS = (("json_schema", "schema"), ("format", "schema"), ("structured_outputs", "json"))
"""Fields that have JSON schemas, each with the field that it is in."""


class JsonRoute(APIRoute):
    """A route whose JSON body is read by ``parse_json``."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class _JsonRequest(Request):
    @override
    async def json(self) -> Any:
        return parse_json(await self.body())


def parse_json(body: bytes) -> Any:
    """Parse the JSON text of a request.

    Fields that are null are left out but for those of schemas, and whole floats become integers.

    Raises:
        ApiError: a text is not valid Unicode, which ``param`` names, or the JSON cannot be read.
        JSONDecodeError: it is not JSON.
    """
    try:
        text = body.decode("utf-8-sig")
        may_be_invalid = SURROGATE.search(body) is not None
    except UnicodeDecodeError:
        text = body.decode("utf-8", "surrogateescape")  # lone surrogates for the invalid bytes
        may_be_invalid = True
    try:
        value = json.loads(text, parse_float=_number)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):  # the latter is raised for thousands of digits
        message = "The body is nested too deeply, or has a number with too many digits."
        raise ApiError(400, message, "invalid_json") from None
    if may_be_invalid:
        _require_unicode(value)
    if "null" in text:
        _drop_nulls(value)
    return value


def _number(digits: str) -> float | int:
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) < LARGEST else value


def _drop_nulls(body: Any) -> None:
    """Remove the fields of a body that are null, in place, but for those of schemas."""
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        above, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(above, item) for item in value if isinstance(item, dict | list)]
        elif isinstance(value, dict):
            for name in [name for name, item in value.items() if item is None]:
                del value[name]
            waiting += [
                (name, item) for name, item in value.items() if (above, name) not in SCHEMAS
            ]


class _Place(NamedTuple):
    """Where a value is. Places of deeply nested values share the path above them."""

    above: "_Place | None"
    name: str | int

    def path(self) -> list[str | int]:
        path: list[str | int] = []
        place: _Place | None = self
        while place is not None:
            path.append(place.name)
            place = place.above
        return path[::-1]


def _require_unicode(body: Any) -> None:
    """Raise 422 for the first text with a lone surrogate, which no encoding of Unicode has."""
    for place, value in _values(body):
        param = "body" if place is None else field_path(place.path())
        if isinstance(value, str) and (invalid := _first_surrogate(value)) is not None:
            message = (
                f"{param}: is not valid Unicode text, at character {invalid}. Half of a surrogate "
                "pair stands there, as of an emoji that was cut, or a byte that is not UTF-8."
            )
            raise ApiError(422, message, "invalid_value", param=param)
        if isinstance(value, Mapping) and any(_first_surrogate(name) is not None for name in value):
            where = "" if place is None else f" of {param}"
            message = f"The name of a field{where} is not valid Unicode text."
            raise ApiError(422, message, "invalid_body", param=param)


def _values(body: Any) -> Iterator[tuple[_Place | None, Any]]:
    """Yield all values of a body in its order, each with its place; objects before their fields."""
    waiting: list[tuple[_Place | None, Any]] = [(None, body)]
    while waiting:
        place, value = waiting.pop()
        yield place, value
        waiting += [(_Place(place, name), item) for name, item in _inner(value)][::-1]


def _inner(value: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _first_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
