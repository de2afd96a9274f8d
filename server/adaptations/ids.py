"""Ids of adaptations."""

import re
import secrets

ID_PREFIX = "adapt-"
"""Starts the id of every adaptation, and the name of no model."""
ID_PATTERN = re.compile(ID_PREFIX + "[0-9a-f]{32}")


def new_id() -> str:
    """Return an id that cannot be guessed."""
    return ID_PREFIX + secrets.token_hex(16)


def is_adaptation_id(name: str) -> bool:
    """Return whether a request's ``model`` names an adaptation, existing or not."""
    return name.startswith(ID_PREFIX)
