"""Encodes arguments for HTTP; one that cannot be encoded is an error that names it."""

import json
import math
import re
from collections.abc import Mapping
from urllib.parse import quote

import httpx

from refine_server.clients.errors import InvalidArgumentError

SURROGATE = re.compile("[\ud800-\udfff]")
KEY = re.compile(r"[!-~]+")


def encode_body(arguments: Mapping[str, object]) -> bytes:
    """Encode the arguments of a request as a JSON object.

    Raises:
        InvalidArgumentError: a part of an argument has no JSON form; its path is named.
    """
    for name, value in arguments.items():
        try:
            check_text(ascii(name), name)
            _check(value, name)
        except RecursionError:
            raise _invalid(name, "is nested too deeply or contains itself") from None
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":")).encode()


def check_text(name: str, value: object) -> str:
    """Return a value that is text and has a form in UTF-8.

    Raises:
        InvalidArgumentError: it is something else, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise _invalid(name, f"must be a string, not {_type(value)}")
    if found := SURROGATE.search(value):
        raise _invalid(name, f"character {found.start()} is half of a surrogate pair")
    return value


def encode_segment(name: str, value: object) -> str:
    """Encode an id as one segment of a URL's path.

    Raises:
        InvalidArgumentError: it is not text, or the URL would be that of another resource.
    """
    text = check_text(name, value)
    if text in ("", ".", ".."):
        raise _invalid(name, f"{text!r} cannot be part of a URL")
    return quote(text, safe="")


def encode_key(name: str, value: object) -> str:
    """Encode an API key as the value of an ``Authorization`` header.

    Raises:
        InvalidArgumentError: it is not visible ASCII text, as every key is.
    """
    if not isinstance(value, str) or not KEY.fullmatch(value):
        raise _invalid(name, "must be visible ASCII characters without spaces")
    return f"Bearer {value}"


def parse_url(name: str, value: object) -> httpx.URL:
    """Parse the address of a server.

    Raises:
        InvalidArgumentError: it is not an HTTP URL with a host.
    """
    text = check_text(name, value)
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise _invalid(name, f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise _invalid(name, f"{text!r} must have the form http://host:port")
    return url


def _check(value: object, path: str) -> None:
    """Raise InvalidArgumentError for the first part of a value that has no JSON form."""
    match value:
        case None | bool():
            pass
        case str():
            check_text(path, value)
        case int():
            _check_digits(value, path)
        case float():
            if not math.isfinite(value):
                raise _invalid(path, f"{value} is not finite")
        case list() | tuple():
            for index, item in enumerate(value):
                _check(item, f"{path}.{index}")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or SURROGATE.search(key):
                    raise _invalid(path, f"{key!r} cannot be the name of a field")
                _check(item, f"{path}.{key}")
        case _:
            raise _invalid(path, f"{_type(value)} has no JSON form")


def _check_digits(value: int, path: str) -> None:
    try:
        str(value)
    except ValueError:  # Python limits conversions, as their time is quadratic
        raise _invalid(path, "the number has too many digits") from None


def _type(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _invalid(path: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path}: {reason}", param=path)
