"""The optimiser over a request's own fast weights."""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.kernels.fast_weight_optim import OptimState
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig


class FastWeightOptimizer:
    """AdamW or SGD, gradients clipped by norm, over R requests' fast weights; in place."""

    def __init__(self, config: AdaptConfig, fast: FastWeights) -> None:
        self.rule = config.optimizer
        self.params = fast.parameters()
        self.state = OptimState.new(self.params, self.rule)
        R, device = fast.requests, self.params[0].device
        self.learning_rate, self.max_norm = (
            torch.full((R,), value, dtype=torch.float64, device=device)
            for value in (config.learning_rate, config.max_grad_norm)
        )

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for param in self.params:
            param.grad = None

    def step(self, active: Tensor) -> Tensor:
        """Step the requests that are active ([R] or []) and whose gradient is finite.

        Returns:
            [R] norms of the gradients before clipping.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        norm, _ = dispatch.fast_weight_optim(
            self.params,
            grads,
            self.state,
            self.rule,
            self.learning_rate,
            self.max_norm,
            active.expand(self.learning_rate.shape),
        )
        return norm
