"""When an adaptation must not be used, and the reasons that the answer then names."""

import math

from refine_server.ttt.config import AdaptConfig
from refine_server.ttt.fast_weights import FastWeights

NON_FINITE_LOSS = "non_finite_loss"
NON_FINITE_GRADIENT = "non_finite_gradient"
NON_FINITE_WEIGHTS = "non_finite_weights"
LOSS_ROSE = "loss_rose"
DOCUMENT_TOO_SHORT = "document_too_short"


def reject_step(loss: float, grad_norm: float) -> str | None:
    """Why the update that this loss and gradient ask for must not be made, or None."""
    if not math.isfinite(loss):
        return NON_FINITE_LOSS
    if not math.isfinite(grad_norm):
        return NON_FINITE_GRADIENT
    return None


def reject_result(
    config: AdaptConfig, fast: FastWeights, first_loss: float, final_loss: float
) -> str | None:
    """Why the adapted weights must not be used, or None; losses on what the loop read."""
    if not fast.is_finite():
        return NON_FINITE_WEIGHTS
    if not math.isfinite(final_loss):
        return NON_FINITE_LOSS
    if config.guard == "loss" and final_loss > first_loss:
        return LOSS_ROSE
    return None
