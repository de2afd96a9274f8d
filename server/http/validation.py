"""Errors for bodies that pydantic refused: which field of the request is at fault, and why."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from refine_server.server.http.errors import ApiError
from refine_server.server.http.moved import MOVED, REMOVED
from refine_server.ttt.interface import plain_words

NO_OBJECT = ("model_type", "model_attributes_type")
"""Pydantic's errors for a value that is no object, where it should be one."""
NO_KIND = ("union_tag_invalid", "union_tag_not_found")
"""Pydantic's errors for a field ``kind`` that is unknown or missing; they are located above it."""
MAX_NAME = 64
"""Characters of a field's name that an error repeats; a client may send any name."""
MAX_PROBLEMS = 20
"""Problems of a request that its error describes."""
TAG_OF = {"on": "kind", "evidence": "by", "content": "type", "input": "type"}
"""The field that tells which kind of object a field has, or each item of a list in it; pydantic
adds its value to locations."""


B = TypeVar("B", bound=BaseModel)


def validated(kind: type[B], body: object) -> B:
    """Return a body as one of a kind.

    Raises:
        ApiError: 422, a field is at fault.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        located = [{**found, "loc": ("body", *found["loc"])} for found in error.errors()]
        raise invalid_body(located, body) from None


def invalid_body(errors: Sequence[Any], body: object = None) -> ApiError:
    """Return the error for what pydantic found wrong with a request.

    The message names the first fields at fault, ``param`` and ``code`` the first one.

    Args:
        errors: pydantic's errors.
        body: the body that they were found in.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        message = f"The body is not valid JSON: {reason} at character {first['loc'][-1]}."
        return ApiError(400, message, "invalid_json")
    located = _most_specific([(_path(error, body), error) for error in errors[:MAX_PROBLEMS]])
    path, first = located[0]
    param = field_path(path)
    if not path and first["type"] != "value_error":
        message = "The body must be a JSON object, sent with content-type: application/json."
        return ApiError(422, message, "invalid_body", param=param)
    problems = dict.fromkeys(
        f"{field_path(path)}: {_reason(path, error)}" for path, error in located
    )
    code = "unknown_field" if first["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(422, "; ".join(problems), code, param=param)


Path = tuple[str | int, ...]
"""Where a value is in a body: names of fields and places in lists."""


def _path(error: Any, body: object) -> Path:
    """Return the path of the field at fault.

    Pydantic's location also names the members of unions that it tried, which are no fields. They
    are left out: what is not in the body is a field only where a field is missing.
    """
    kind, (place, *location) = error["type"], error["loc"]
    if place != "body":
        return tuple(location)
    path: list[str | int] = []
    name, tag_of = "", None
    for at, part in enumerate(location):
        is_tag = isinstance(body, Mapping) and tag_of in body and body[tag_of] == part
        is_missing = at == len(location) - 1 and kind in ("missing", *NO_KIND)
        tag_of = None
        if is_tag:
            continue
        if _has(body, part):
            body = body[part]  # type: ignore[index]
        elif path and not is_missing:
            continue
        path.append(part)
        name = part if isinstance(part, str) else name
        tag_of = TAG_OF.get(name)
    if kind in NO_KIND:
        path.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _has(value: object, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _most_specific(located: Sequence[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Leave out errors of a field of which a part is at fault as well.

    They are those of the other members of a union.
    """
    paths = {path[:n] for path, _ in located for n in range(len(path))}
    return [(path, error) for path, error in located if path not in paths]


def field_path(path: Sequence[str | int]) -> str:
    """Return the dotted path of a field in the body; ``body`` for the body itself."""
    return ".".join(str(part)[:MAX_NAME] for part in path) or "body"


def _reason(path: Path, error: Any) -> str:
    if error["type"] in ("extra_forbidden", *NO_OBJECT):
        *above, name = path
        within = above[-1] if above else ""
        if (place := MOVED.get(str(within), {}).get(str(name))) is not None:
            return f"moved to {field_path(above)}.{place}"
        if within == "adapt" and name in REMOVED:
            return REMOVED[str(name)]
    if error["type"] in NO_OBJECT and path[-1:] == ("adapt",):
        return 'must be an object, such as {"preset": "fast"}'
    return plain_words.reason(error)
