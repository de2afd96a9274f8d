"""How the memory that a model leaves is shared out."""

ADAPTATIONS = 4
"""A fourth of it is for kept adaptations, the rest for requests. Documents as they were read take
what both leave, and make room when a request begins."""
ACTIVATIONS = 2
"""Half of the memory for requests may be activations that one step keeps for its backward pass; a
longer document is read in segments. The rest is for what grows with the document even so."""


def for_adaptations(room: int) -> int:
    """Return the most bytes that kept adaptations may take, of what the model leaves."""
    return room // ADAPTATIONS


def for_requests(room: int) -> int:
    """Return the most bytes that the requests in work may take, of what the model leaves."""
    return room - for_adaptations(room)


def for_activations(room: int) -> int:
    """Return the most bytes of activations that a step may keep, of what the model leaves."""
    return for_requests(room) // ACTIVATIONS
