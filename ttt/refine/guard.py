"""Reason codes: why an adaptation does not use its steps, or stopped before the last one.

The checks here find values that are not finite; ``held_out`` evaluates weights that are.
"""

import math

from refine_server.ttt.fast_weights import FastWeights

NON_FINITE_LOSS = "non_finite_loss"
NON_FINITE_GRADIENT = "non_finite_gradient"
NON_FINITE_WEIGHTS = "non_finite_weights"
NO_BETTER_STEP = "no_better_step"
"""The base weights did no worse, by the held-out spans or by the answer."""
DOCUMENT_TOO_SHORT = "document_too_short"
"""No rollout fits into the document, or no span can be held out of it."""
NOTHING_SIMILAR = "nothing_similar"
"""No word of the query occurs in the document, so there are no spans to adapt on."""
NO_IMPROVEMENT = "no_improvement"
"""Several evaluations in a row brought no better weights, so no more steps were made."""
MAX_SECONDS = "max_seconds"
"""The time that the configuration allows had passed."""


def check_step(loss: float, grad_norm: float) -> str | None:
    """Return the reason why no update with this loss and gradient may be made, or None."""
    if not math.isfinite(grad_norm) and math.isfinite(loss):
        return NON_FINITE_GRADIENT
    return check_loss(loss)


def check_weights(fast: FastWeights) -> str | None:
    """Return the reason why these fast weights must not be used, or None."""
    return None if fast.is_finite() else NON_FINITE_WEIGHTS


def check_loss(loss: float) -> str | None:
    """Return the reason why weights with this next-token loss must not be used, or None."""
    return None if math.isfinite(loss) else NON_FINITE_LOSS
