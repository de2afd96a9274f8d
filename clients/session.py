"""The session of a request, which the header ``x-session-id`` tells the servers' proxy.

Requests of one session go to one replica, which has their document in memory.
"""

import hashlib
from collections.abc import Mapping

HEADER = "x-session-id"
ADAPTATION_PREFIX = "adapt-"
LENGTH = 8
"""Hexadecimal digits of a session."""


def session_of(authorization: str | None, arguments: Mapping[str, object]) -> str | None:
    """Return the session of a request; None where it has no text of a document and no adaptation.

    Args:
        authorization: the header with the API key, as ``arguments.encode_key`` makes it.
        arguments: those of the request.
    """
    adaptation, document = arguments.get("adaptation"), arguments.get("document")
    if isinstance(adaptation, str):
        return session_of_adaptation(adaptation)
    if not isinstance(document, str):
        return None
    key = (authorization or "").removeprefix("Bearer ")
    digest = hashlib.sha256(f"{key}\0text\0{document}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:LENGTH]


def session_of_adaptation(adaptation_id: str) -> str | None:
    """Return the session of the document that was adapted to, with which the id begins."""
    digits = adaptation_id.removeprefix(ADAPTATION_PREFIX)[:LENGTH]
    is_session = len(digits) == LENGTH and all(digit in "0123456789abcdef" for digit in digits)
    return digits if is_session else None
