"""Clipped surrogate and KL to the unadapted policy: the definition of the op."""

import torch
from torch import Tensor

DUAL_CLIP = 3.0
"""Bound on the surrogate of a negative advantage (dual-clip PPO, arXiv 1912.09729)."""


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip: float,
    base_log_prob: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Dual-clipped surrogate, and KL(policy || base) by the positive estimator "k3".

    Args:
        log_prob: [N, k], of sampled tokens under the policy, from ``token_stats``; both results are
            differentiable with respect to it.
        old_log_prob: [N, k], under the policy that sampled them.
        advantages: [N].
        clip: half-width of the trust region around ratio 1.
        base_log_prob: [N, k], under the unadapted policy; None: KL is 0.
        mask: [N, k], True for tokens that count; None: all.

    Returns:
        Surrogate and KL, [] each: means over the tokens that count, 0 when none does.
    """
    ratio = (log_prob - old_log_prob).exp()
    A = advantages[:, None].to(log_prob.dtype)
    clipped = torch.maximum(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip))
    surrogate = torch.where(A < 0, torch.minimum(clipped, -A * DUAL_CLIP), clipped)
    kl = torch.zeros_like(surrogate)
    if base_log_prob is not None:
        gap = base_log_prob - log_prob
        kl = gap.exp() - gap - 1
    return masked_mean(surrogate, mask), masked_mean(kl, mask)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the values that count, 0 when none does."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)
