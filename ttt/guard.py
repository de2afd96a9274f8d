"""When an adaptation must not be used, and the reasons that the answer then names."""

import math

import torch

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


def reject_result(fast: FastWeights, final_loss: float) -> str | None:
    """Why the adapted weights must not be used, or None."""
    if not fast.is_finite():
        return NON_FINITE_WEIGHTS
    if not math.isfinite(final_loss):
        return NON_FINITE_LOSS
    return None


class Best:
    """A copy of the weights as they were when the next-token loss was lowest.

    Step 0 is the beginning: when no later step is better, the base weights are as good.
    """

    def __init__(self, fast: FastWeights) -> None:
        self.fast = fast
        self.step, self.loss = 0, math.inf
        self._kept: FastWeights | None = None

    def see(self, step: int, loss: float) -> None:
        """Keep the present weights, which ``step`` steps made, if their loss is the lowest yet."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            self._kept = self.fast.clone() if step else None

    @torch.no_grad()
    def restore(self) -> tuple[int, float]:
        """Write the kept values back; the step that made them and their loss."""
        if self._kept is not None:
            for own, kept in zip(self.fast.parameters(), self._kept.parameters(), strict=True):
                own.copy_(kept)
        return self.step, self.loss
