"""Errors that a request can end with."""

TOO_LONG = "context_length_exceeded"
"""What OpenAI's clients know a prompt by that is too long for the model."""


class RequestError(ValueError):
    """The request cannot be served as written; nothing was changed.

    ``param`` names the offending field and ``code`` is a stable machine-readable word.
    """

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class DamagedError(ValueError):
    """Stored bytes that are no adapted document of this format; the message says what is wrong."""


class IsolationError(RuntimeError):
    """Weights or a state were about to be used for somebody who does not own them."""
