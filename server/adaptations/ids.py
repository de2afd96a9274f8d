"""Ids of adaptations."""

import re
import secrets

ID_PREFIX = "adapt-"
"""Starts the id of every adaptation, and the name of no model."""
ID_PATTERN = re.compile(ID_PREFIX + "[0-9a-f]{32}")
SESSION_LENGTH = 8
SESSION_PATTERN = re.compile(f"[0-9a-f]{{{SESSION_LENGTH}}}")
"""Sessions as ``replicas/session.py`` and the clients compute them."""


def new_id(session: str | None = None) -> str:
    """Return an id that cannot be guessed.

    Args:
        session: the session of the document, which the id then begins with, so that requests with
            the id reach the replica that made the adaptation; None, or another form, for none.
    """
    digits = secrets.token_hex(16)
    if session is not None and SESSION_PATTERN.fullmatch(session):
        digits = session + digits[SESSION_LENGTH:]
    return ID_PREFIX + digits


def session_of_adaptation(adaptation_id: str) -> str:
    """Return the session that the id of an adaptation begins with."""
    return adaptation_id.removeprefix(ID_PREFIX)[:SESSION_LENGTH]


def is_adaptation_id(name: str) -> bool:
    """Return whether a request's ``model`` names an adaptation, existing or not."""
    return name.startswith(ID_PREFIX)
