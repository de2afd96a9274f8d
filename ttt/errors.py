"""Errors of the weights themselves. Whoever only loads a model needs no request's types."""


class IsolationError(RuntimeError):
    """Weights or a state were about to be used for somebody who does not own them."""
