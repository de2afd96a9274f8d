"""Text files as they are."""

from refine_server.server.files.conversion.found import Found, Limits
from refine_server.server.files.conversion.kinds import text_of


def read(data: bytes, limits: Limits) -> Found:
    """Return the text of a file.

    Raises:
        ConversionError: it is no text.
    """
    return Found(text=text_of(data, "text"))
