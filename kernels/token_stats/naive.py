"""Token statistics from the whole [N, V] matrix: the definition of the op."""

import torch
from torch import Tensor

from refine_server.kernels.token_stats import TokenStats


def token_stats(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> TokenStats:
    """Compute every token's statistics: log-probability of its target, entropy and log-sum-exp.

    Args:
        hidden: [N, D], after the final norm.
        weight: [V, D], of the LM head.
        targets: [N], token ids.
        temperature: what the logits are divided by.

    Returns:
        [N] each; log_prob is differentiable with respect to hidden and weight.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden @ weight.T).to(dtype) / temperature  # [N, V]
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return TokenStats(
        log_probs.gather(-1, targets[:, None]).squeeze(-1),
        entropy.detach(),
        logits.logsumexp(-1).detach(),
    )
