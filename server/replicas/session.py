"""The session of a request: what the header ``x-session-id`` says, and how it is computed.

Requests of one session go to one replica, which then has their document in memory. The session of a
document is a hash of the API key and the document. The id of an adaptation begins with the session
of its document, so that questions to it arrive where it was made.

The clients compute the same (``clients/session.py``, ``clients/typescript/src/session.ts``); a test
compares them.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers

from refine_server.server.adaptations.ids import (
    ID_PATTERN,
    SESSION_LENGTH,
    session_of_adaptation,
)

HEADER = "x-session-id"
ADAPTATION_PATH = re.compile(rf"/v1/adaptations/({ID_PATTERN.pattern})(?:/.*)?")
SHARED_PATHS = ("/v1/files", "/v1/documents", "/v1/batches")
"""Resources that an owner's other requests name only by their ids."""


def session_of(headers: Headers, path: str, body: bytes) -> str | None:
    """Return the session of a request.

    Args:
        headers: those of the request; one that has a session is believed.
        path: its path.
        body: its whole body.

    Returns:
        The session; None where the request has no document, so that any replica may serve it.
    """
    if (given := headers.get(HEADER)) is not None:
        return given
    credential = _credential(headers)
    if found := ADAPTATION_PATH.fullmatch(unquote(path)):
        return session_of_adaptation(found[1])
    if path.startswith(SHARED_PATHS):
        return _session(credential, "owner", "")
    if not body.lstrip().startswith(b"{"):
        return None
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the replica says what is wrong with it
    for name in (request.get("model"), request.get("adaptation")):
        if isinstance(name, str) and ID_PATTERN.fullmatch(name):
            return session_of_adaptation(name)
    sessions = (_session_of_document(credential, value) for value in _documents(request))
    return next((session for session in sessions if session is not None), None)


def _session(credential: str, kind: str, subject: str) -> str:
    text = f"{credential}\0{kind}\0{subject}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:SESSION_LENGTH]


def _session_of_document(credential: str, value: object) -> str | None:
    match value:
        case str(text) | {"file_data": str(text)}:
            return _session(credential, "text", text)
        case {"file_id": str()}:
            return _session(credential, "owner", "")  # where the file was uploaded
    return None


def _documents(request: dict[str, Any]) -> Iterator[object]:
    """Yield the documents of a request, in each of the fields that may have one."""
    yield request.get("document")
    extension = request.get("ttt")
    if isinstance(extension, dict):
        yield extension.get("document")
    for field in ("messages", "input"):
        yield from _attached(request.get(field))


def _attached(messages: object) -> Iterator[object]:
    """Yield the files in the messages of a chat or of a response."""
    if not isinstance(messages, list):
        return
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part.get("file", part)


def _credential(headers: Headers) -> str:
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credential.strip()
    return headers.get("x-api-key", "")
