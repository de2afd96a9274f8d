"""The optimiser of requests' own fast weights."""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.kernels.fast_weight_optim import OptimState
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig


class FastWeightOptimizer:
    """AdamW over R requests' fast weights, in place, with gradients clipped by norm.

    Args:
        config: has the learning rate, the largest norm and the weight decay.
        fast: [R, ...], leaves that require a gradient.
    """

    def __init__(self, config: AdaptConfig, fast: FastWeights) -> None:
        self.params = fast.parameters()
        self.state = OptimState.new(self.params)
        R, device = fast.requests, self.params[0].device
        settings = config.optimizer
        self.learning_rate, self.max_norm, self.weight_decay = (
            torch.full((R,), value, dtype=torch.float64, device=device)
            for value in (settings.learning_rate, settings.max_grad_norm, settings.weight_decay)
        )

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        for param in self.params:
            param.grad = None

    def step(self, active: Tensor) -> Tensor:
        """Make one step for each request that is active and whose gradient is finite.

        Args:
            active: [R], or [] for all requests alike.

        Returns:
            [R], the norm of each request's gradient before clipping.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        norm, _ = dispatch.fast_weight_optim(
            self.params,
            grads,
            self.state,
            self.learning_rate,
            self.max_norm,
            self.weight_decay,
            active.expand(self.learning_rate.shape),
        )
        return norm
