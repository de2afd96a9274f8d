"""Token statistics from the whole [N, V] matrix: the definition of the op."""

import torch
from torch import Tensor


def token_stats(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of a target and entropy of the distribution, token by token.

    Args:
        hidden: [N, D], after the final norm.
        weight: [V, D], the LM head.
        targets: [N] token ids.
        temperature: divides the logits.

    Returns:
        log_prob [N], differentiable with respect to hidden and weight, and entropy [N], which is
        not; both in nats, at least fp32.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden @ weight.T).to(dtype) / temperature  # [N, V]
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, targets[:, None]).squeeze(-1), entropy.detach()
