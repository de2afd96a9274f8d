"""What reports are made of: their base class, measured values, and held-out evaluations."""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


Measured = Annotated[float, PlainSerializer(_finite, return_type=float | None, when_used="json")]
"""A measured value. NaN and infinity, which JSON does not have, are written as null."""


class Report(BaseModel):
    """A part of a response: every field is always there, and documented by its docstring."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


class EvalResult(Report):
    """Evaluation of the weights after a step on the document's held-out spans."""

    step: int
    """The step after which the weights were evaluated; 0: the base weights."""
    loss: Measured
    """Next-token loss of the spans at their place in the document, in nats per token."""
    accuracy: float
    """Share of the spans' tokens, 0 to 1, that greedy decoding reproduces correctly after a cue
    that follows the document."""
    seconds: float = 0.0
    """Time of the evaluation; in a batch, the request's share of it. Version 0.3 kept none."""
