"""Errors that a request can end with."""

TOO_LONG = "context_length_exceeded"
"""Code of a prompt that is too long, as OpenAI's clients expect it."""


class RequestError(ValueError):
    """The request cannot be served as written; nothing was changed.

    Args:
        message: what is wrong and what to change.
        param: dotted path of the field at fault.
        code: stable name of the error, for programs.
    """

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class DamagedError(ValueError):
    """Stored bytes are not an adapted document of this format; the message says why."""


class IsolationError(RuntimeError):
    """Weights or a state were about to be used for another owner, or the base weights changed."""
