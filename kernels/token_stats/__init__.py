"""Each token's statistics under the LM head: log-probability of a target, entropy, normaliser."""

from typing import NamedTuple

from torch import Tensor


class TokenStats(NamedTuple):
    """Statistics of N tokens, [N] each, in nats, at least fp32."""

    log_prob: Tensor
    """The log-probability of the target; differentiable."""

    entropy: Tensor
    """The entropy of the next-token distribution; without a graph."""

    lse: Tensor
    """The log-sum-exp of the logits; without a graph."""
