"""The terms of the REFINE loss (arXiv 2602.16704, section 3.4)."""

import torch
from torch import Tensor

DUAL_CLIP = 3.0
"""Bound on the surrogate of a negative advantage (dual-clip PPO, arXiv 1912.09729)."""


def grpo_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate, dual-clipped, mean over tokens.

    Args:
        log_prob, old_log_prob: [N, k].
        advantages: [N].
        clip: half-width of the trust region around ratio 1.
    """
    ratio = (log_prob - old_log_prob).exp()
    A = advantages[:, None].to(log_prob.dtype)
    clipped = torch.maximum(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip))
    return torch.where(A < 0, torch.minimum(clipped, -A * DUAL_CLIP), clipped).mean()


def kl_to_base(log_prob: Tensor, base_log_prob: Tensor) -> Tensor:
    """KL(policy || base) over sampled tokens [N, k], by the unbiased positive estimator "k3"."""
    gap = base_log_prob - log_prob
    return (gap.exp() - gap - 1).mean()
