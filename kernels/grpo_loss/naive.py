"""Policy-gradient surrogate and KL to the unadapted policy: the definition of the op."""

import torch
from torch import Tensor


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    base_log_prob: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the GRPO surrogate, and KL(policy || base) by the positive estimator "k3".

    The surrogate is the mean of -ratio · advantage, where ratio = exp(log_prob - old_log_prob).
    There is no clip: a rollout is sampled and scored under the same weights and used for exactly
    one update, so the ratio is 1 up to rounding and the clip of arXiv 2602.16704, section 3.4,
    never binds. At ratio 1 both gradients are the same, -advantage · d log_prob.

    Args:
        log_prob: [N, k], of N rollouts' sampled tokens under the policy, from ``token_stats``. Both
            results are differentiable with respect to it.
        old_log_prob: [N, k], under the policy that sampled them.
        advantages: [N], one of each rollout, for all of its tokens.
        base_log_prob: [N, k], under the unadapted policy; None: the KL is 0.

    Returns:
        Surrogate and KL, [] each: means over all tokens.
    """
    ratio = (log_prob - old_log_prob).exp()
    surrogate = -ratio * advantages[:, None].to(log_prob.dtype)
    kl = torch.zeros_like(surrogate)
    if base_log_prob is not None:
        gap = base_log_prob - log_prob
        kl = gap.exp() - gap - 1
    return surrogate.mean(), kl.mean()
