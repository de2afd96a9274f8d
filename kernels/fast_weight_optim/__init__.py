"""One optimiser step for many requests at once, each with its own rate, clip and step count."""

from dataclasses import dataclass

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
"""Decay rates of AdamW's two running means, torch's defaults."""

EPS = 1e-8
"""Added to the root of AdamW's mean of squares, torch's default."""

CLIP_EPS = 1e-6
"""Added to the norm that a gradient is clipped by, as in torch's ``clip_grad_norm_``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimState:
    """The optimiser's running means over the steps of R requests; updated in place."""

    first: list[Tensor]
    """The mean of gradients, shaped as the parameters."""

    second: list[Tensor]
    """The mean of squared gradients, shaped as the parameters."""

    steps: Tensor
    """[R] int32, the updates that each request has made."""

    @classmethod
    def new(cls, params: list[Tensor]) -> "OptimState":
        """Return the state before the first step on ``params``, [R, ...] each."""
        first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
        steps = torch.zeros(params[0].shape[0], dtype=torch.int32, device=params[0].device)
        return cls(first=first, second=second, steps=steps)
